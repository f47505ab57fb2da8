//! How a machine's CPUs are arranged.

/// Sockets of cores of threads. CPU indices count threads first, then cores, then sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

/// Where one CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its socket.
    pub socket: u32,
    /// Its core in the socket.
    pub core: u32,
    /// Its thread in the core.
    pub thread: u32,
}

/// The arrangement has a part that is zero, or more CPUs than can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sockets} sockets of {cores} cores of {threads} threads is no arrangement of CPUs; each must be 1 or more")]
pub struct TopologyError {
    sockets: u32,
    cores: u32,
    threads: u32,
}

impl Topology {
    /// The arrangement of `sockets` times `cores` times `threads`.
    ///
    /// # Errors
    /// If one is zero, or the product has more than 32 bits.
    pub fn new(sockets: u32, cores: u32, threads: u32) -> Result<Self, TopologyError> {
        let total = sockets.checked_mul(cores).and_then(|product| product.checked_mul(threads));
        match total {
            None | Some(0) => Err(TopologyError { sockets, cores, threads }),
            Some(_) => Ok(Self { sockets, cores, threads }),
        }
    }

    /// One socket of `cpus` cores; a machine has one at least.
    pub fn flat(cpus: u32) -> Self {
        Self { sockets: 1, cores: cpus.max(1), threads: 1 }
    }

    /// CPUs in a socket.
    pub fn per_socket(&self) -> u32 {
        self.cores * self.threads
    }

    /// CPUs in all.
    pub fn total(&self) -> u32 {
        self.sockets * self.per_socket()
    }

    /// Where CPU `index` is.
    pub fn place(&self, index: u32) -> Place {
        Place {
            socket: index / self.per_socket(),
            core: index / self.threads % self.cores,
            thread: index % self.threads,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn indices_count_threads_then_cores_then_sockets() {
        let topology = Topology::new(2, 3, 2).unwrap();
        assert_eq!(topology.total(), 12);
        assert_eq!(topology.place(0), Place { socket: 0, core: 0, thread: 0 });
        assert_eq!(topology.place(5), Place { socket: 0, core: 2, thread: 1 });
        assert_eq!(topology.place(6), Place { socket: 1, core: 0, thread: 0 });
        assert_eq!(Topology::flat(0).total(), 1);
    }

    #[test]
    fn nothing_is_no_arrangement() {
        Topology::new(1, 0, 1).unwrap_err();
        let error = Topology::new(1 << 16, 1 << 16, 1).unwrap_err();
        assert!(error.to_string().starts_with("65536 sockets of 65536 cores"), "{error}");
    }
}
