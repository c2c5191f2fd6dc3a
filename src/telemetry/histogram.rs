//! Latencies: how long something took, as a histogram of bounded size.
//!
//! Owns: the resolution (two significant digits, 1 us to 1 h) and the buckets shown to
//! Prometheus. Never: clocks; the caller measures.
//!
//! One per shard and purpose. A reader gets a copy and merges the copies of all shards.
//!
//! Limits: about 26 KiB each, whatever is recorded; what is out of range counts at its edge.

use hdrhistogram::Histogram;

/// The shortest and the longest latency that is told apart, in microseconds.
const RANGE_US: (u64, u64) = (1, 3_600_000_000);

/// Upper bounds of the buckets shown, in microseconds.
pub const BUCKETS_US: [u64; 16] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    30_000_000,
    300_000_000,
];

/// Latencies of one kind.
#[derive(Clone, Debug)]
pub struct Latencies {
    values: Histogram<u64>,
    sum_us: u64,
}

impl Latencies {
    /// Nothing recorded yet.
    ///
    /// # Panics
    /// Never: the range and the digits are constants that the histogram takes.
    #[must_use]
    pub fn new() -> Self {
        let values = Histogram::new_with_bounds(RANGE_US.0, RANGE_US.1, 2)
            .expect("a range of 1 .. 3.6e9 with two digits is one that a histogram takes");
        Self { values, sum_us: 0 }
    }

    /// Records one latency in microseconds.
    pub fn record_us(&mut self, latency_us: u64) {
        self.values.saturating_record(latency_us.clamp(RANGE_US.0, RANGE_US.1));
        self.sum_us = self.sum_us.saturating_add(latency_us);
    }

    /// Adds what another shard recorded.
    pub fn merge(&mut self, other: &Latencies) {
        for value in other.values.iter_recorded() {
            let count = value.count_since_last_iteration();
            self.values.saturating_record_n(value.value_iterated_to(), count);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// What was recorded since `earlier`, a copy of the same latencies; what `earlier` has more
    /// of counts as none.
    #[must_use]
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        let mut later = Latencies::new();
        for value in self.values.iter_recorded() {
            let latency_us = value.value_iterated_to();
            let before = earlier.values.count_at(latency_us);
            let count = value.count_at_value().saturating_sub(before);
            later.values.saturating_record_n(latency_us, count);
        }
        later.sum_us = self.sum_us.saturating_sub(earlier.sum_us);
        later
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.values.len()
    }

    /// Their sum in microseconds.
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The latency in microseconds that `percent` of all do not exceed, within 1 %; 0 when
    /// nothing was recorded.
    #[must_use]
    pub fn percentile_us(&self, percent: f64) -> u64 {
        self.values.value_at_percentile(percent)
    }

    /// How many were at most as long as each of [`BUCKETS_US`], within the resolution.
    #[must_use]
    pub fn cumulative(&self) -> [u64; BUCKETS_US.len()] {
        let mut counts = [0; BUCKETS_US.len()];
        for value in self.values.iter_recorded() {
            let latency_us = value.value_iterated_to();
            let bucket = BUCKETS_US.partition_point(|bound| {
                // The highest value that the histogram does not tell apart from the bound.
                self.values.highest_equivalent(*bound) < latency_us
            });
            if let Some(count) = counts.get_mut(bucket) {
                *count += value.count_since_last_iteration();
            }
        }
        let mut below = 0;
        for count in &mut counts {
            below += *count;
            *count = below;
        }
        counts
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_sums_survive_merging() {
        let (mut low, mut high) = (Latencies::new(), Latencies::new());
        for latency_us in 1..=1000 {
            low.record_us(latency_us);
            high.record_us(latency_us + 9000);
        }
        low.merge(&high);
        assert_eq!(low.count(), 2000);
        assert_eq!(low.sum_us(), 500_500 * 2 + 9_000_000);
        let median = low.percentile_us(50.0);
        assert!((990..=1010).contains(&median), "{median}");
        let last = low.percentile_us(100.0);
        assert!((9900..=10_100).contains(&last), "{last}");
    }

    #[test]
    fn a_span_holds_what_came_after_its_beginning() {
        let mut latencies = Latencies::new();
        (0..100).for_each(|_| latencies.record_us(50));
        let earlier = latencies.clone();
        (0..10).for_each(|_| latencies.record_us(700_000));
        latencies.record_us(50);
        let later = latencies.since(&earlier);
        assert_eq!((later.count(), later.sum_us()), (11, 7_000_050));
        assert_eq!(later.percentile_us(1.0), 50);
        assert!(later.percentile_us(50.0).abs_diff(700_000) < 7_000);
        assert_eq!(earlier.since(&latencies).count(), 0);
    }

    #[test]
    fn a_bound_counts_in_its_own_bucket() {
        let mut latencies = Latencies::new();
        for bound in BUCKETS_US {
            latencies.record_us(bound);
        }
        let counts = latencies.cumulative();
        for (place, count) in (1..).zip(counts) {
            assert_eq!(count, place);
        }
    }

    #[test]
    fn out_of_range_counts_at_the_edge() {
        let mut latencies = Latencies::new();
        latencies.record_us(0);
        latencies.record_us(u64::MAX);
        assert_eq!(latencies.count(), 2);
        assert_eq!(latencies.cumulative()[0], 1);
        assert_eq!(latencies.cumulative()[BUCKETS_US.len() - 1], 1);
        assert_eq!(Latencies::new().percentile_us(99.0), 0);
    }
}
