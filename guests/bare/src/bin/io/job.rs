//! The words of the command line.

/// Which device a job is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The first NVMe controller's first namespace.
    Nvme,
    /// The first virtio block device.
    VirtioBlk,
}

impl Device {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::VirtioBlk => "virtio-blk",
        }
    }
}

/// What is done again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads in order, from the first block on.
    Read,
    /// Writes in order.
    Write,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
}

impl Op {
    const ALL: [Self; 4] = [Self::Read, Self::Write, Self::RandRead, Self::RandWrite];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
        }
    }

    /// Whether it writes.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite)
    }

    /// Whether it goes anywhere.
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite)
    }
}

/// A job, as the words up to `run` have it. It ends after `count` accesses or `ms` milliseconds, whichever comes first.
pub struct Job {
    /// On which device.
    pub device: Device,
    /// What.
    pub op: Op,
    /// Bytes of an access.
    pub block: u64,
    /// Accesses in flight.
    pub depth: u32,
    /// Accesses at most.
    pub count: u64,
    /// Milliseconds at most.
    pub ms: u64,
    /// What random places and patterns follow from.
    pub seed: u64,
    /// Writes write the pattern, reads compare with it.
    pub verify: bool,
    /// Shadow doorbells, where an NVMe controller has them. It counts when the device is first used.
    pub shadow: bool,
    /// Indirect descriptors, where a virtio device has them. The same.
    pub indirect: bool,
}

/// What a word asks for.
pub enum Word {
    /// To be remembered.
    Set,
    /// To run the job.
    Run,
    /// To do nothing for so many milliseconds.
    Idle(u64),
    /// To halt at the end.
    Halt,
    /// Nothing that is known.
    Unknown,
}

impl Job {
    /// What goes without saying.
    pub fn new() -> Self {
        Self {
            device: Device::Nvme,
            op: Op::RandRead,
            block: 4096,
            depth: 1,
            count: u64::MAX,
            ms: 60_000,
            seed: 1,
            verify: false,
            shadow: true,
            indirect: false,
        }
    }

    /// Takes a word.
    pub fn word(&mut self, word: &str) -> Word {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let number = value.parse::<u64>().ok();
        match (key, number) {
            ("run", _) => return Word::Run,
            ("end", _) if value == "halt" => return Word::Halt,
            ("end", _) if value == "poweroff" => {}
            ("idle", Some(ms)) => return Word::Idle(ms),
            ("device", _) if value == "nvme" => self.device = Device::Nvme,
            ("device", _) if value == "virtio-blk" => self.device = Device::VirtioBlk,
            ("op", _) => match Op::ALL.into_iter().find(|op| op.word() == value) {
                Some(op) => self.op = op,
                None => return Word::Unknown,
            },
            ("bs", Some(bytes)) => self.block = bytes,
            ("depth", Some(depth)) => self.depth = depth.try_into().unwrap_or(u32::MAX),
            ("count", Some(count)) => self.count = count,
            ("ms", Some(ms)) => self.ms = ms,
            ("seed", Some(seed)) => self.seed = seed,
            ("verify", Some(on @ 0..=1)) => self.verify = on == 1,
            ("shadow", Some(on @ 0..=1)) => self.shadow = on == 1,
            ("indirect", Some(on @ 0..=1)) => self.indirect = on == 1,
            _ => return Word::Unknown,
        }
        Word::Set
    }
}
