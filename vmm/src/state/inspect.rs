//! A snapshot for people and programs: every record checked, and told.

use std::fmt::{Debug, Write as _};

use minicbor::Decoder;
use minicbor::data::Type;
use serde_json::{Map, Value, json};
use skep_chipset::{
    flash, fw_cfg, gpio, i8042, i8254, i8259, ioapic, pl011, pl031, pm, port92, reset_control, rtc, uart16550,
};
use skep_hypervisor::{aarch64, x86_64};
use skep_pci::{ChipsetState, EndpointState, RootComplexState, RootPortState};
use skep_state::{Record, State, StateError};
use skep_virtio::{balloon, blk, console, net, rng, vhost_user, vsock};

use super::records::refused;
use super::{DisksState, FirmwareState, MachineState, Snapshot, SnapshotError};
use crate::machine::{Aarch64CpusState, X86CpusState};

#[cfg(test)]
#[path = "inspect_test.rs"]
mod test;

#[cfg(test)]
#[path = "rules_test.rs"]
mod rules;

/// Decodes and checks a record, for it to be told.
type Tell = fn(&Record) -> Result<Box<dyn Debug>, StateError>;

fn tell<S: State + 'static>(record: &Record) -> Result<Box<dyn Debug>, StateError> {
    Ok(Box::new(record.open::<S>()?))
}

const fn known<S: State + 'static>() -> (&'static str, Tell) {
    (S::ID, tell::<S>)
}

/// The types that this skep writes.
const KNOWN: [(&str, Tell); 36] = [
    known::<MachineState>(),
    known::<DisksState>(),
    known::<FirmwareState>(),
    known::<X86CpusState>(),
    known::<Aarch64CpusState>(),
    known::<x86_64::VcpuState>(),
    known::<aarch64::VcpuState>(),
    known::<aarch64::GicState>(),
    known::<i8259::I8259State>(),
    known::<i8254::I8254State>(),
    known::<ioapic::IoApicState>(),
    known::<rtc::RtcState>(),
    known::<i8042::I8042State>(),
    known::<port92::Port92State>(),
    known::<reset_control::ResetControlState>(),
    known::<pm::PmState>(),
    known::<uart16550::Uart16550State>(),
    known::<pl011::Pl011State>(),
    known::<pl031::Pl031State>(),
    known::<gpio::Pl061State>(),
    known::<flash::FlashState>(),
    known::<fw_cfg::FwCfgState>(),
    known::<RootComplexState>(),
    known::<RootPortState>(),
    known::<EndpointState>(),
    known::<ChipsetState>(),
    known::<skep_nvme::ControllerState>(),
    known::<skep_ne2k::Ne2kState>(),
    known::<skep_virtio::TransportState>(),
    known::<blk::BlkState>(),
    known::<net::NetState>(),
    known::<rng::RngState>(),
    known::<balloon::BalloonState>(),
    known::<console::ConsoleState>(),
    known::<vhost_user::VhostUserState>(),
    known::<vsock::VsockState>(),
];

fn describe(name: &str, record: &Record) -> Result<String, SnapshotError> {
    let known = KNOWN.iter().find(|(id, _)| *id == record.id);
    let Some((_, tell)) = known else {
        return Err(SnapshotError::Unknown { name: name.to_owned(), id: record.id.clone() });
    };
    let mut text = format!("{:#?}", tell(record).map_err(refused(name))?);
    if record.id == RootComplexState::ID {
        let state: RootComplexState = record.open().map_err(refused(name))?;
        for function in &state.functions {
            let behind = if function.behind { "/behind" } else { "" };
            let inner = format!("{name}/{}{behind}", function.device);
            // Writing to a string does not fail.
            let _ = write!(text, "\n{inner} ({}): {}", function.record.id, describe(&inner, &function.record)?);
        }
    }
    Ok(text)
}

/// Checks every record by the rules of its type.
///
/// # Errors
/// [`SnapshotError::Record`] and [`SnapshotError::Unknown`], the first found.
pub fn check(snapshot: &Snapshot) -> Result<(), SnapshotError> {
    for named in &snapshot.records.records {
        match describe(&named.name, &named.record) {
            Err(SnapshotError::Unknown { .. }) if named.optional => {}
            done => drop(done?),
        }
    }
    Ok(())
}

/// The header and every record as text. What is refused says why.
pub fn text(snapshot: &Snapshot) -> String {
    let header = &snapshot.header;
    let mut text = format!(
        "skep {}, machine {} ({}), saved at {} s since 1970\nmemory: {} bytes, of which {} {}\nrecords: {} bytes\n",
        header.skep,
        header.machine,
        header.architecture,
        header.saved,
        header.memory.size,
        header.memory.data,
        if header.base.is_some() { "are in pages that its base has otherwise" } else { "are no zeroes" },
        header.records.size
    );
    if let Some(base) = &header.base {
        // Writing to a string does not fail.
        let _ = writeln!(text, "the difference to {} (its header has XXH64 {})", base.folder.display(), base.header);
    }
    for named in &snapshot.records.records {
        let (record, told) = (&named.record, describe(&named.name, &named.record));
        let told = told.unwrap_or_else(|error| error.to_string());
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{} ({}, version {}): {told}", named.name, record.id, record.version);
    }
    text
}

/// The header and every record as JSON: fields by their numbers, bytes in hexadecimal.
pub fn json(snapshot: &Snapshot) -> String {
    let records = snapshot.records.records.iter().map(|named| {
        let Record { id, version, body } = &named.record;
        let fields = value(&mut Decoder::new(body), 0).unwrap_or_else(|| Value::String(hex(body)));
        json!({ "name": named.name, "type": id, "version": version, "optional": named.optional, "fields": fields })
    });
    let value = json!({ "header": snapshot.header, "records": records.collect::<Vec<_>>() });
    format!("{value:#}\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A CBOR item. `None` for what no state type has.
fn value(decoder: &mut Decoder<'_>, depth: u8) -> Option<Value> {
    const DEEPEST: u8 = 16;
    if depth > DEEPEST {
        return None;
    }
    Some(match decoder.datatype().ok()? {
        Type::Bool => decoder.bool().ok()?.into(),
        Type::Null => {
            decoder.null().ok()?;
            Value::Null
        }
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => decoder.u64().ok()?.into(),
        Type::I8 | Type::I16 | Type::I32 | Type::I64 => decoder.i64().ok()?.into(),
        Type::String => decoder.str().ok()?.into(),
        Type::Bytes => hex(decoder.bytes().ok()?).into(),
        Type::Array => {
            let count = decoder.array().ok()??;
            (0..count).map(|_| value(decoder, depth + 1)).collect::<Option<Vec<_>>>()?.into()
        }
        Type::Map => {
            let count = decoder.map().ok()??;
            let mut map = Map::new();
            for _ in 0..count {
                let key = value(decoder, depth + 1)?;
                map.insert(key.to_string(), value(decoder, depth + 1)?);
            }
            map.into()
        }
        _ => return None,
    })
}
