use super::*;

#[test]
fn the_page_is_up_to_date() {
    assert!(is_up_to_date().unwrap(), "{PAGE} is not what the types say: run `cargo xtask state`");
}

#[test]
fn every_record_of_a_machine_is_on_the_page() {
    let page = page().unwrap();
    for id in ["skep-machine", "x86_64-vcpu", "aarch64-vcpu", "gic", "nvme", "virtio-pci", "pci-endpoint", "i8254"] {
        assert!(page.contains(&format!("## `{id}`, version ")), "{id}");
    }
    // A type that is there twice is the one meant.
    let section = |id: &str| page.split(&format!("## `{id}`")).nth(1).unwrap().split("\n## ").next().unwrap();
    assert!(section("x86_64-vcpu").contains("| 4 | `xsave` | `Vec<XsaveComponent>` |"));
    assert!(section("aarch64-vcpu").contains("| 9 | `power` | `PowerState` | Whether the CPU runs. |  |"));
    assert!(section("aarch64-vcpu").contains("### SystemRegister"));
}

#[test]
fn types_are_read_as_rustfmt_leaves_them() {
    let text = "\
/// One.
/// Of them.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(crate) struct One {
    /// A number. Any value.
    #[n(0)]
    pub number: u64,
    /// Bytes.
    #[n(3)]
    #[cbor(with = \"minicbor::bytes\")]
    pub bytes: Vec<u8>,
}

/// Not encoded.
#[derive(Debug)]
pub struct Other {
    pub number: u64,
}

/// A choice.
#[derive(Encode)]
pub enum Choice {
    /// None.
    #[n(0)]
    None,
    /// Some.
    #[n(1)]
    Some(#[n(0)] u8),
}

impl State for One {
    const ID: &'static str = \"one\";
    const VERSION: u16 = 7;

    fn check(&self) -> Result<(), StateError> {
        let fits = self.bytes.len() < 10;
        ensure(fits, Self::ID, \"bytes\", f(self, 1), \"there are (ten, at most)\")?;
        ensure(
            self.bytes.is_ascii(),
            Self::ID,
            \"bytes\",
            (),
            \"they are ASCII\",
        )
    }
}
";
    let types = types_of(text, Path::new("a.rs"));
    let names: Vec<_> = types.iter().map(|one| (one.name.as_str(), one.meaning.as_str(), one.fields.len())).collect();
    assert_eq!(names, [("One", "One. Of them.", 2), ("Choice", "A choice.", 2)]);
    assert_eq!((types[0].fields[1].number, types[0].fields[1].kind.as_str()), (3, "Vec<u8>"));
    assert_eq!((types[1].fields[1].name.as_str(), types[1].fields[1].kind.as_str()), ("Some", "u8"));
    let one = &types[0].fields[0];
    assert_eq!((one.meaning.as_str(), one.any, types[0].fields[1].any), ("A number.", true, false));
    let rules = rules_of(text, Path::new("a.rs"));
    let told: Vec<_> =
        rules.iter().map(|rule| (rule.owner.as_deref(), rule.field.as_str(), rule.text.as_str())).collect();
    assert_eq!(told, [(Some("One"), "bytes", "there are (ten, at most)"), (Some("One"), "bytes", "they are ASCII")]);
    let roots = roots_of(text, Path::new("a.rs"));
    assert_eq!((roots[0].id.as_str(), roots[0].version, roots[0].name.as_str()), ("one", 7, "One"));
}
