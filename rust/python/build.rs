//! Builds the C++ and CUDA module next to the Rust one, so that one wheel holds both.
//!
//! maturin takes `_kernels*` and `hparams/` from `OUT_DIR` (see `[tool.maturin]` in
//! `pyproject.toml`). The compilers themselves are driven by `csrc/build.py`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "cargo reads the one and shows the other"
)]

use std::env;
use std::process::{Command, exit};

/// Changes of these variables change what is built.
const VARIABLES: [&str; 5] = [
    "PYO3_PYTHON",
    "PYO3_BUILD_EXTENSION_MODULE",
    "EASYEDIT_FAST_CUDA",
    "EASYEDIT_FAST_DEV",
    "CXX",
];

/// Files and folders, relative to this crate, that `csrc/build.py` reads.
const INPUTS: [&str; 3] = ["../../csrc", "../../hparams", "../../Cargo.toml"];

fn main() {
    for variable in VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for input in INPUTS {
        println!("cargo:rerun-if-changed={input}");
    }
    // Only maturin sets it: plain `cargo test` and `cargo clippy` need no C++ compiler.
    if env::var_os("PYO3_BUILD_EXTENSION_MODULE").is_none() {
        return;
    }
    let Some(python) = env::var_os("PYO3_PYTHON") else {
        fail("PYO3_PYTHON is not set; build with maturin or pip");
    };
    let Some(out) = env::var_os("OUT_DIR") else {
        fail("OUT_DIR is not set; build with cargo");
    };
    let status = Command::new(&python)
        .args(["-B", "../../csrc/build.py", "--out"])
        .arg(out)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => exit(1),
        Err(error) => fail(&format!(
            "cannot run PYO3_PYTHON ({}): {error}",
            python.to_string_lossy()
        )),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    exit(1);
}
