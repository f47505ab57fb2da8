use skep_irq::IrqLine;
use skep_memory::MemoryMap;
use skep_pci::{NoMessages, PciPlace};

use super::*;

#[test]
fn it_is_an_endpoint() {
    let lines = [(); 4].map(|()| IrqLine::detached());
    let socket = Socket::new(PciPlace::Root(3), MemoryMap::new(), Arc::new(NoMessages), lines);
    let (endpoint, controller) = endpoint(&socket, ControllerConfig::new("one"), Clock::manual(0)).unwrap();
    let sizes: Vec<_> = endpoint.bars().iter().flatten().map(|bar| bar.size).collect();
    assert_eq!(sizes, [0x2000, 0x1000], "registers with 65 pairs of doorbells, and 65 vectors");
    let mut version = [0; 4];
    endpoint.function().read(0, 8, &mut version);
    assert_eq!(version, [0, 0, 2, 0]);
    endpoint.function().write(0, 0x24, &[1, 2, 3, 4]);
    let mut attributes = [0; 4];
    controller.read(0x24, &mut attributes);
    assert_eq!(attributes, [1, 2, 3, 4]);
    endpoint.function().reset();
    controller.read(0x24, &mut attributes);
    assert_eq!(attributes, [0; 4]);
    assert!(endpoint.function().doorbells().is_empty());
}

#[test]
fn a_configuration_that_can_not_be_is_refused() {
    let bad = [
        ControllerConfig { queues: 0, ..ControllerConfig::new("a") },
        ControllerConfig { queues: 511, ..ControllerConfig::new("a") },
        ControllerConfig { in_flight: 0, ..ControllerConfig::new("a") },
        ControllerConfig { power_states: Vec::new(), ..ControllerConfig::new("a") },
        ControllerConfig::new("a serial number that is too long"),
    ];
    for config in bad {
        assert!(matches!(config.check(), Err(NvmeError::Config { .. })), "{config:?}");
    }
}
