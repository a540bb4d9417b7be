//! An iterator that runs ahead of its user, in a thread of its own.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result};

/// The items of an iterator, some of them made before they are asked for.
///
/// The thread ends with the iterator, or when this is dropped, which waits for it: no thread is
/// at work when the process takes itself down. A forked child has not the thread, so that it gets
/// no items.
pub struct ReadAhead<T> {
    /// None only while this is dropped.
    items: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
    /// The process that has the thread.
    process: u32,
}

impl<T: Send + 'static> ReadAhead<T> {
    /// Starts the thread; it makes at most `depth` items ahead, and one more that waits.
    ///
    /// # Errors
    /// [`Error::Argument`] where the system gives no thread.
    pub fn start(iterator: impl Iterator<Item = T> + Send + 'static, depth: usize) -> Result<Self> {
        let (sender, items) = sync_channel(depth);
        let thread = Builder::new()
            .name("read-ahead".to_owned())
            .spawn(move || {
                for item in iterator {
                    // The other end is gone: nobody wants more.
                    if sender.send(item).is_err() {
                        break;
                    }
                }
            })
            .map_err(|error| Error::Argument(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            items: Some(items),
            thread: Some(thread),
            process: std::process::id(),
        })
    }

    /// Waits for the next item.
    ///
    /// # Errors
    /// [`Error::Argument`] where the thread has died of a panic, so that items are missing, and in
    /// a forked child.
    pub fn next_item(&mut self) -> Result<Option<T>> {
        if std::process::id() != self.process {
            return Err(Error::Argument(
                "the files were opened before this process was forked; open them in it".to_owned(),
            ));
        }
        if let Some(Ok(item)) = self.items.as_ref().map(Receiver::recv) {
            return Ok(Some(item));
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(Error::Argument(
                "the thread that reads ahead has died; its message is above".to_owned(),
            )),
            _ => Ok(None),
        }
    }
}

impl<T> Drop for ReadAhead<T> {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // The thread is not here: it cannot be joined, and may hold the channel's lock.
            std::mem::forget((self.items.take(), self.thread.take()));
            return;
        }
        // The thread that waits to hand an item over learns by this that nobody wants it.
        self.items = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was an error to whoever read; here nobody reads any more.
            let _ = thread.join();
        }
    }
}
