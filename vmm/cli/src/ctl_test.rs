use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixListener;

use skep_vmm::ctl::protocol::{Greeting, VERSION};

use super::*;

fn device(id: &str, kind: &str, place: &str, state: DeviceState) -> DeviceInfo {
    DeviceInfo {
        id: id.to_owned(),
        kind: kind.to_owned(),
        place: place.to_owned(),
        state,
        removable: false,
        size: None,
        controller: None,
        namespace: None,
    }
}

#[test]
fn devices_stand_in_columns() {
    let disk = DeviceInfo { size: Some(8 << 20), ..device("data", "virtio-blk", "port:0", DeviceState::Leaving) };
    let namespace = DeviceInfo {
        controller: Some("many".to_owned()),
        namespace: Some(3),
        ..device("third", "nvme-namespace", "root:1", DeviceState::On)
    };
    let expected = "\
ID     KIND            PLACE   STATE    SIZE
rng    virtio-rng      root:2  on
data   virtio-blk      port:0  leaving  8M
third  nvme-namespace  many:3  on
";
    assert_eq!(table(&[device("rng", "virtio-rng", "root:2", DeviceState::On), disk, namespace]), expected);
}

#[test]
fn figures_are_sorted() {
    let exits = [("io".to_owned(), 3), ("mmio".to_owned(), 40)].into();
    let stats = Stats { elapsed_us: 1_234_567, first_instruction_us: None, restarts: 2, exits };
    let expected = "first instruction: never\nrunning for: 1234.567 ms\nrestarts: 2\nexits: 43\n  \
                    mmio                         40\n  io                            3\n";
    assert_eq!(figures(&stats), expected);
}

#[test]
fn a_migration_says_how_far_and_how_fast_it_goes() {
    let migration = MigrationStatus { rounds: 2, sent: 96 << 20, rate: 40 << 20, unknown: false };
    let status = |migration| Status {
        activity: Activity::Migrating,
        done: 1 << 20,
        of: 4 << 20,
        migration,
        waits_for_devices: false,
    };
    let text = activity(&status(Some(migration)));
    assert_eq!(text, "migrating: 96M sent, 40 MiB/s: 1M of 4M, round 3\n");
    let text = activity(&status(Some(MigrationStatus { unknown: true, ..migration })));
    assert!(text.contains("nobody says whether it runs there"), "{text}");
    let waits = |status| activity(&Status { waits_for_devices: true, ..status });
    let text = waits(status(Some(migration)));
    assert_eq!(text, "migrating: 96M sent, 40 MiB/s: its devices wait for what they have in flight\n");
    let text = waits(Status { activity: Activity::Saving, ..status(None) });
    assert_eq!(text, "saving: its devices wait for what they have in flight\n");
    // An earlier skep does not say how fast.
    let told: MigrationStatus = serde_json::from_str(r#"{"rounds":2,"sent":3,"unknown":false}"#).unwrap();
    assert_eq!(told, MigrationStatus { rounds: 2, sent: 3, rate: 0, unknown: false });
}

#[test]
fn a_balloon_says_what_it_holds() {
    let guest = [("free".to_owned(), 3 << 20), ("major-faults".to_owned(), 7)].into();
    let info = BalloonInfo { target: 64 << 20, actual: 4096, guest };
    let expected = "target: 64M\nactual: 4K\n  free                   3M\n  major-faults            7\n";
    assert_eq!(balloon(&info), expected);
}

/// The machine has a working folder of its own.
#[test]
fn what_is_plugged_in_is_named_by_full_paths() {
    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        ctl: CtlArgs,
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let here = std::env::current_dir().unwrap();
    for (kind, what, file) in
        [("disk", "some.img,format=raw", "some.img"), ("net", "user,romfile=some.rom", "some.rom")]
    {
        let words = ["ctl", socket.to_str().unwrap(), kind, "add", what];
        let words: Words = clap::Parser::parse_from(words);
        let asked = std::thread::scope(|scope| {
            let machine = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let greeting = Greeting { protocol: VERSION, skep: String::new() };
                stream.write_all(json(&greeting).as_bytes()).unwrap();
                let mut asked = String::new();
                BufReader::new(&stream).read_line(&mut asked).unwrap();
                stream.write_all(b"{\"id\":1,\"result\":{\"id\":\"it\",\"place\":\"port:0\"}}\n").unwrap();
                asked
            });
            ctl(words.ctl).unwrap();
            machine.join().unwrap()
        });
        assert!(asked.contains(&format!("\"{}\"", here.join(file).display())), "{asked}");
    }
}

/// What is shown while a save or a migration goes on is asked for by a connection of its own, which ends with it.
#[test]
fn how_far_it_has_come_is_asked_for_until_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let migration = MigrationStatus { rounds: 1, sent: 7, rate: 40 << 20, unknown: false };
    let status = |activity, done, migration| Status { activity, done, of: 8, migration, waits_for_devices: false };
    let answers = [
        status(Activity::Running, 0, None),
        status(Activity::Saving, 3, None),
        status(Activity::Migrating, 5, Some(migration)),
    ];
    let over = AtomicBool::new(false);
    let mut shown = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(json(&Greeting { protocol: VERSION, skep: String::new() }).as_bytes()).unwrap();
            let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
            for (id, status) in (1..).zip(&answers) {
                assert!(asked.next().unwrap().unwrap().contains("\"status\""));
                if id == answers.len() {
                    over.store(true, Ordering::Relaxed);
                }
                let answer = format!("{{\"id\":{id},\"result\":{}}}\n", json(status).trim());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            assert!(asked.next().is_none_or(|line| line.is_err()), "it asks no more");
        });
        watch(&socket, &over, None, |done, of, rate| shown.push((done, of, rate)));
    });
    assert_eq!(shown, [(3, 8, None), (5, 8, Some(40 << 20))]);
    // Where nobody listens, nothing is shown.
    drop(listener);
    watch(&socket, &AtomicBool::new(false), None, |_, _, _| panic!("nobody has answered"));
    Watch::start(socket).end();
}
