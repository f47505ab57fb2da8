//! Which clusters of a file are used, and how often: runs of clusters, which is little for what was written in order.

/// Uses that are still being found.
#[derive(Default)]
pub(super) struct References(Vec<Run>);

struct Run {
    first: u64,
    end: u64,
    times: u64,
}

/// Uses by cluster: runs in order, which do not overlap, each with how often its clusters are used.
#[derive(Default)]
pub(super) struct Counted(Vec<Run>);

impl References {
    /// `len` clusters from `first` on are used `times` more.
    pub(super) fn add(&mut self, first: u64, len: u64, times: u64) {
        if len == 0 || times == 0 {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.end == first && last.times == times => last.end += len,
            _ => self.0.push(Run { first, end: first + len, times }),
        }
    }

    /// All of them, counted.
    pub(super) fn counted(self) -> Counted {
        // What begins and what ends, in the order of the file.
        let mut edges: Vec<_> = self.0.iter().map(|run| (run.first, run.times)).collect();
        edges.extend(self.0.iter().map(|run| (run.end, run.times.wrapping_neg())));
        drop(self.0);
        edges.sort_unstable_by_key(|(at, _)| *at);
        let (mut runs, mut times, mut since) = (Vec::<Run>::new(), 0_u64, 0);
        for (at, change) in edges {
            if at > since && times > 0 {
                match runs.last_mut() {
                    Some(last) if last.end == since && last.times == times => last.end = at,
                    _ => runs.push(Run { first: since, end: at, times }),
                }
            }
            (since, times) = (at, times.wrapping_add(change));
        }
        Counted(runs)
    }
}

impl Counted {
    /// How often a cluster is used.
    pub(super) fn times(&self, cluster: u64) -> u64 {
        let place = self.0.partition_point(|run| run.end <= cluster);
        self.0.get(place).filter(|run| run.first <= cluster).map_or(0, |run| run.times)
    }

    /// The runs, each as its first cluster and the one behind it.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|run| (run.first, run.end))
    }

    /// Clusters that are used.
    pub(super) fn used(&self) -> u64 {
        self.0.iter().map(|run| run.end - run.first).sum()
    }
}

#[test]
fn uses_are_counted_where_they_overlap() {
    let mut found = References::default();
    for (first, len, times) in [(10, 5, 1), (15, 1, 1), (0, 1, 1), (12, 2, 3), (12, 8, 1), (40, 0, 9)] {
        found.add(first, len, times);
    }
    let counted = found.counted();
    let times: Vec<_> = [0, 1, 9, 10, 11, 12, 13, 14, 15, 16, 19, 20, 40].map(|at| counted.times(at)).into();
    assert_eq!(times, [1, 0, 0, 1, 1, 5, 5, 2, 2, 1, 1, 0, 0]);
    assert_eq!(counted.runs().collect::<Vec<_>>(), [(0, 1), (10, 12), (12, 14), (14, 16), (16, 20)]);
    assert_eq!(counted.used(), 11);
}
