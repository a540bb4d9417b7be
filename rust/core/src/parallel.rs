//! The one door to the thread pool.

use std::sync::OnceLock;

use rayon::prelude::*;

/// The process in which the thread pool was first used.
static POOL_PROCESS: OnceLock<u32> = OnceLock::new();

/// Applies `work` to every item, in parallel, and gives the results in the items' order.
///
/// A forked child inherits the pool without its threads and would wait for them for ever, so it
/// works through the items by itself.
pub(crate) fn map_ordered<T, R, F>(items: &[T], work: F) -> Vec<R>
where
    T: Sync,
    R: Send,
    F: Fn(usize, &T) -> R + Sync + Send,
{
    let process = std::process::id();
    if *POOL_PROCESS.get_or_init(|| process) == process {
        items
            .par_iter()
            .enumerate()
            .map(|(place, item)| work(place, item))
            .collect()
    } else {
        items
            .iter()
            .enumerate()
            .map(|(place, item)| work(place, item))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::map_ordered;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..10_000).collect();
        let doubled = map_ordered(&items, |place, item| (place, item * 2));
        assert!(
            doubled
                .iter()
                .enumerate()
                .all(|(place, &pair)| pair == (place, place * 2))
        );
    }
}
