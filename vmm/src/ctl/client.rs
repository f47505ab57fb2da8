//! A client of the control socket, which waits for its answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::protocol::{Failure, Greeting, VERSION};

/// Bytes of a response at most.
const MOST_RESPONSE: u64 = 16 << 20;

/// How long a machine may take to greet. What is no skep says nothing at all.
const GREETING: Duration = Duration::from_secs(30);

/// Why a machine can't be asked, or does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("can't reach a machine at {}: {source}{}", path.display(), match source.kind() {
        io::ErrorKind::NotFound => "\n  try: the socket of a machine that was started with --control SOCKET",
        io::ErrorKind::ConnectionRefused => "\n  try: start the machine again: the one that had this socket is dead",
        io::ErrorKind::PermissionDenied => "\n  try: as the user who runs the machine",
        io::ErrorKind::InvalidInput => "\n  try: a path of at most 107 bytes; a relative one may be shorter",
        _ => "",
    })]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Something else is there.
    #[error("what listens at {} is no skep, or one of a version that this one can't talk to", path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
    },
    /// What is said is JSON, which has texts of Unicode only.
    #[error(
        "the machine can't be told: a path, or the folder that it begins in, has a name that is no UTF-8 text\n  try: paths of such names only"
    )]
    NotText,
    /// It says no.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// It has ended.
    #[error("the machine has ended before it answered")]
    Ended,
    /// It takes longer than was asked for.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    /// The host.
    #[error("the machine can't be asked: {0}")]
    Host(io::Error),
}

#[derive(Deserialize)]
struct Response {
    id: Option<u64>,
    result: Option<Box<RawValue>>,
    error: Option<Failure>,
}

#[derive(Serialize)]
struct Request<'a, A> {
    id: u64,
    command: &'a str,
    arguments: &'a A,
}

/// A connection to a machine.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    asked: u64,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let failed = |source: io::Error| match path.metadata() {
            Ok(it) if !it.file_type().is_socket() => io::Error::other("that is no socket"),
            _ => source,
        };
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source: failed(source) })?;
        let mut client = Self { stream: BufReader::new(stream), path: path.to_owned(), asked: 0 };
        let greeting = serde_json::from_slice::<Greeting>(&client.line(Some((Instant::now() + GREETING, GREETING)))?);
        match greeting {
            Ok(greeting) if greeting.protocol == VERSION => Ok(client),
            _ => Err(client.stranger()),
        }
    }

    /// Asks, and waits for the answer, up to `patience` where one is given.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: &impl Serialize,
        patience: Option<Duration>,
    ) -> Result<T, ClientError> {
        self.asked += 1;
        let id = self.asked;
        let mut request = serde_json::to_vec(&Request { id, command, arguments }).map_err(|_| ClientError::NotText)?;
        request.push(b'\n');
        self.stream.get_mut().write_all(&request).map_err(gone)?;
        let deadline = patience.map(|patience| (Instant::now() + patience, patience));
        loop {
            let line = self.line(deadline)?;
            let response: Response = serde_json::from_slice(&line).map_err(|_| self.stranger())?;
            if response.id != Some(id) {
                continue;
            }
            return match (response.result, response.error) {
                (_, Some(failure)) => Err(failure.into()),
                (Some(result), None) => serde_json::from_str(result.get()).map_err(|_| self.stranger()),
                (None, None) => Err(self.stranger()),
            };
        }
    }

    fn line(&mut self, deadline: Option<(Instant, Duration)>) -> Result<Vec<u8>, ClientError> {
        let mut line = Vec::new();
        let late = |patience| {
            move |error: io::Error| match error.kind() {
                io::ErrorKind::WouldBlock => ClientError::Late(patience),
                _ => gone(error),
            }
        };
        // A time of 0 would wait for ever.
        let left = deadline.map(|(end, _)| end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        self.stream.get_ref().set_read_timeout(left).map_err(ClientError::Host)?;
        let patience = deadline.map(|(_, patience)| patience).unwrap_or_default();
        Read::by_ref(&mut self.stream).take(MOST_RESPONSE).read_until(b'\n', &mut line).map_err(late(patience))?;
        match line.pop() {
            Some(b'\n') => Ok(line),
            Some(_) => Err(self.stranger()),
            None => Err(ClientError::Ended),
        }
    }

    fn stranger(&self) -> ClientError {
        ClientError::Stranger { path: self.path.clone() }
    }
}

fn gone(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Ended,
        _ => ClientError::Host(error),
    }
}
