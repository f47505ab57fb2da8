//! UEFI firmware boots from a network: dnsmasq and a web server of the host, on a tap interface, in a network namespace of their own.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use support::disk::{net_program, words};
use support::network::{self, Server};
use support::{Builder, base64, firmware, is_x86_64, text};

/// A web server with one file at any address (RFC 9112): answers what it was asked for, in the order in which it was.
fn serve(listener: TcpListener, file: Vec<u8>) -> Receiver<String> {
    let (asked, requests) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            let mut request = String::new();
            while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
                let text = line.trim_end();
                if request.is_empty() {
                    text.clone_into(&mut request);
                } else if text.is_empty() {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/efi\r\nContent-Length: {}\r\n\r\n",
                        file.len()
                    );
                    let body: &[u8] = if request.starts_with("HEAD ") { &[] } else { &file };
                    // The guest may not want all of it.
                    let _ = stream.get_mut().write_all(&[head.as_bytes(), body].concat());
                    let _ = asked.send(std::mem::take(&mut request));
                }
                line.clear();
            }
        }
    });
    requests
}

/// Says by what it was booted, and has the next boot be by HTTP if that was PXE.
const SCRIPT: &str = r"d=/sys/firmware/efi/efivars; g=-8be4df61-93ca-11d2-aa0d-00e098032b8c
    c=$(tail -c 2 $d/BootCurrent$g | od -An -tx2 | tr -d ' ' | tr a-f A-F)
    case $(tr -d '\0' <$d/Boot$c$g) in
    *PXEv4*)
        echo booted by PXE
        for f in $d/Boot0*; do case $(tr -d '\0' <$f) in *HTTPv4*) n=${f##*/Boot};; esac; done
        printf '\7\0\0\0'$(printf '\\x%s' ${n:2:2} ${n:0:2}) >$d/BootNext$g
        echo next is $n; reboot -f;;
    *HTTPv4*) echo booted by HTTP;;
    esac";

/// Over virtio-net: a program with a kernel in it by TFTP, then, by BootNext, the same one by HTTP.
#[test]
fn uefi_boots_from_a_network() {
    network::leave();
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    net_program(&files.join("net.efi"), &words(&format!("skep.script={}", base64(SCRIPT))));

    let (code, template) =
        if is_x86_64() { ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd") } else { ("AAVMF_CODE.fd", "AAVMF_VARS.fd") };
    let code = firmware(code);
    let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(&firmware(template)));
    let net = "tap=skep0,mac=02:00:00:00:00:07,bootindex=0";
    let words = ["run", "--log", "info", "--memory", "512M", "--firmware", text(&code), "--net", net];
    let mut machine = Builder::command(&words).args(&["--firmware-vars", &vars]).start();
    machine.be_patient();
    // The interface is there now.
    machine.wait_for_log("`net0` is at");
    network::reach("skep0");
    let web = TcpListener::bind("192.168.79.1:80").unwrap();
    let requests = serve(web, std::fs::read(files.join("net.efi")).unwrap());
    let more = [
        "--dhcp-vendorclass=set:http,HTTPClient",
        "--dhcp-option-force=tag:http,60,HTTPClient",
        "--dhcp-boot=tag:http,http://192.168.79.1/web.efi",
        "--dhcp-boot=tag:!http,net.efi",
    ];
    let _server = Server::dnsmasq("skep0", &files, &folder.path().join("leases"), &more);

    machine.wait_for("skep: GRUB from the network");
    machine.wait_for("booted by PXE");
    machine.wait_for("skep: GRUB from the network");
    machine.wait_for("booted by HTTP");
    machine.finish().expect_code(0).expect_console("skep: script 0");
    let asked = requests.try_iter().filter(|request| request.starts_with("GET /web.efi ")).count();
    assert_eq!(asked, 1, "by PXE nothing, and by HTTP the program once");
}
