use skep_hypervisor::ExitCounts;
use skep_vmm::Ending;

use super::*;

#[test]
fn the_most_frequent_exits_come_first() {
    let outcome = Outcome {
        ending: Ending::PowerOff,
        exits: ExitCounts { port_writes: 12, memory_reads: 30, ..ExitCounts::default() },
        until_first_instruction: Some(Duration::from_micros(1234)),
        elapsed: Duration::from_millis(2500),
        restarts: 1,
    };
    let expected = "skep: first instruction: 1.234 ms\nskep: whole run: 2500.000 ms\nskep: restarts: 1\nskep: exits: 42\n\
                    skep:   memory read                  30\nskep:   port write                   12\n";
    assert_eq!(text(&outcome), expected);
}
