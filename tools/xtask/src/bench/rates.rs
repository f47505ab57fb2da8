//! What the machine itself does: copies of memory, and TCP on loopback, by one thread to another; what figures of saving and migrating are held against.

use anyhow::Result;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

#[cfg(test)]
#[path = "rates_test.rs"]
mod test;

/// Bytes of a piece that is handed to the host: as migration sends.
const PIECE: usize = 1 << 20;

fn gibibytes(bytes: usize, begin: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 30) / begin.elapsed().as_secs_f64()
}

/// GiB/s at which one thread copies memory that does not fit into caches: `bytes` of it, that are there already.
pub(super) fn memory(bytes: usize) -> f64 {
    let (from, mut to) = (vec![0x5a_u8; bytes], vec![1_u8; bytes]);
    let begin = Instant::now();
    to.copy_from_slice(black_box(&from));
    let rate = gibibytes(bytes, begin);
    black_box(to);
    rate
}

/// GiB/s at which `bytes` come through TCP on loopback, from one thread to another.
pub(super) fn loopback(bytes: usize) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let place = listener.local_addr()?;
    let piece = vec![0x5a_u8; PIECE];
    let begin = Instant::now();
    let sender = thread::spawn(move || -> Result<()> {
        let mut stream = TcpStream::connect(place)?;
        let mut left = bytes;
        while left > 0 {
            let part = &piece[..left.min(PIECE)];
            stream.write_all(part)?;
            left -= part.len();
        }
        Ok(())
    });
    let (mut stream, _) = listener.accept()?;
    let (mut buffer, mut come) = (vec![0; PIECE], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => come += count,
        }
    }
    let rate = gibibytes(come, begin);
    match sender.join() {
        Ok(sent) => sent?,
        Err(_) => anyhow::bail!("the thread that sends has ended"),
    }
    anyhow::ensure!(come == bytes, "{come} of {bytes} bytes came through loopback");
    Ok(rate)
}
