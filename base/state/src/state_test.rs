use proptest::prelude::any;

use super::*;

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
struct Old {
    #[n(0)]
    level: u8,
}

impl State for Old {
    const ID: &'static str = "lamp";
    const VERSION: u16 = 1;
    fn check(&self) -> Result<(), StateError> {
        ensure(self.level <= 100, Self::ID, "level", self.level, "it is a percentage")
    }
}

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
struct New {
    #[n(0)]
    level: u8,
    #[n(1)]
    colour: Option<u32>,
}

impl State for New {
    const ID: &'static str = "lamp";
    const VERSION: u16 = 1;
    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
struct Later {
    #[n(0)]
    millilevel: u32,
}

impl State for Later {
    const ID: &'static str = "lamp";
    const VERSION: u16 = 2;
    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
    fn decode_older(version: u16, body: &[u8]) -> Result<Self, StateError> {
        let old: Old = Record { id: "lamp".into(), version, body: body.to_vec() }.open()?;
        Ok(Self { millilevel: u32::from(old.level) * 1000 })
    }
}

#[test]
fn old_reads_new_and_new_reads_old() {
    let new = Record::of(&New { level: 7, colour: Some(3) });
    assert_eq!(new.open::<Old>().unwrap(), Old { level: 7 });
    let old = Record::of(&Old { level: 9 });
    assert_eq!(old.open::<New>().unwrap(), New { level: 9, colour: None });
    assert_eq!(old.open::<Later>().unwrap(), Later { millilevel: 9000 });
}

#[test]
fn refusals_name_what_is_wrong() {
    let record = Record::of(&Later { millilevel: 1 });
    assert_eq!(record.open::<Old>(), Err(StateError::TooNew { id: "lamp".into(), found: 2, newest: 1 }));
    let record = Record { id: "door".into(), ..record };
    assert_eq!(record.open::<Old>(), Err(StateError::WrongType { expected: "lamp", found: "door".into() }));
    let text = Record::of(&Old { level: 101 }).open::<Old>().unwrap_err().to_string();
    assert_eq!(text, "record `lamp`: field `level` is 101, but it is a percentage");
    let mut long = Record::of(&Old { level: 1 });
    long.body.push(0);
    assert!(matches!(long.open::<Old>(), Err(StateError::Malformed { .. })));
}

skep_fuzzing::targets! {
    "state-records": fn fuzz_records(body in any::<Vec<u8>>(), version in any::<u16>()) {
        let _ = Record { id: "lamp".into(), version, body: body.clone() }.open::<Later>();
        let _ = minicbor::decode::<Record>(&body);
    }
}
