//! Knows: which tier served reads, as figures. Never: reads.

use weir_nats::figures::{Counter, Figure, Value as _};

/// Counters of one reader. Read at any time.
#[derive(Debug, Default)]
pub struct ReaderMetrics {
    /// Pages that were read from the archive.
    pub archive: Counter,
    /// Pages of the archive that were kept, or being read for another.
    pub cache: Counter,
    /// Pages that were read from a stream.
    pub stream: Counter,
    /// Queries that reached the archive: pages, counts, searches by time.
    pub queries: Counter,
    /// Questions that were answered with another's answer, as both asked the same at once.
    pub joined: Counter,
}

impl ReaderMetrics {
    /// Every figure. `ring` is how many recoveries were served from memory alone.
    #[must_use]
    pub fn read(&self, ring: i64) -> Vec<Figure> {
        let mut reads = Figure::new(
            "weir_history_reads_total",
            "Reads by the tier that served them; one question may read several.",
            Counter::KIND,
        );
        let (archive, cache) = (self.archive.value(), self.cache.value());
        let stream = self.stream.value();
        for (tier, count) in [
            ("ring", ring),
            ("cache", cache),
            ("archive", archive),
            ("stream", stream),
        ] {
            reads.sample("", vec![("tier", tier.to_owned())], count as f64);
        }
        let single = |name, help, counter: &Counter| {
            Figure::single(name, help, Counter::KIND, counter.value() as f64)
        };
        vec![
            reads,
            single(
                "weir_history_reads_joined_total",
                "Questions answered with another's answer, as both asked the same at once.",
                &self.joined,
            ),
            single(
                "weir_history_archive_queries_total",
                "Queries that reached the archive: pages, counts, searches by time.",
                &self.queries,
            ),
        ]
    }
}
