//! The words of the command line.

/// How the guest ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Power off: ACPI S5, or PSCI.
    PowerOff,
    /// Reset: ACPI's reset register, or PSCI.
    Reset,
    /// Reset by the keyboard controller.
    I8042,
    /// Tell pvpanic, and halt.
    Panic,
    /// A triple fault.
    Triple,
    /// Halt with interrupts off.
    Halt,
    /// Run for ever.
    Spin,
}

impl End {
    const ALL: [Self; 7] =
        [Self::PowerOff, Self::Reset, Self::I8042, Self::Panic, Self::Triple, Self::Halt, Self::Spin];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reset => "reset",
            Self::I8042 => "i8042",
            Self::Panic => "panic",
            Self::Triple => "triple",
            Self::Halt => "halt",
            Self::Spin => "spin",
        }
    }
}

/// How to wait for input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// Halt until the serial port interrupts.
    Interrupt,
    /// Look again and again.
    Poll,
}

/// What the command line asks for.
pub struct Command {
    /// Nothing but the first line.
    pub first: bool,
    /// Only count CPUs.
    pub cpus_only: bool,
    /// Take interrupts from every source.
    pub ticks: bool,
    /// Also from those that take a second.
    pub slow_ticks: bool,
    /// Echo lines.
    pub echo: Option<Echo>,
    /// How to end.
    pub end: End,
}

impl Command {
    /// What `line` asks for. A word that is not known is not ours: it is passed over.
    pub fn parse(line: &str) -> Self {
        let mut command =
            Self { first: false, cpus_only: false, ticks: false, slow_ticks: false, echo: None, end: End::PowerOff };
        for word in line.split_ascii_whitespace() {
            match word {
                "first" => command.first = true,
                "cpus" => command.cpus_only = true,
                "ticks" => command.ticks = true,
                "ticks=slow" => (command.ticks, command.slow_ticks) = (true, true),
                "echo" => command.echo = Some(Echo::Interrupt),
                "echo=poll" => command.echo = Some(Echo::Poll),
                _ => {
                    let end = word
                        .strip_prefix("end=")
                        .and_then(|value| End::ALL.into_iter().find(|end| end.word() == value));
                    command.end = end.unwrap_or(command.end);
                }
            }
        }
        command
    }
}
