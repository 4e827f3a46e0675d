//! One HTTP request from inside a node, as a neighbour of its pods would make it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use flotilla::dev::Space;

const LIMIT: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: u64 = 256 << 10;

/// Status and body of `GET /`.
///
/// # Errors
/// If nobody listens, or what comes back is no HTTP.
pub async fn get(from: Space, at: SocketAddr) -> Result<(u16, String), String> {
    let work = move || from.in_network(|| request(at)).map_err(|error| error.to_string());
    let answer = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())??;
    let answer = answer.map_err(|error| format!("{at}: {error}"))?;
    parse(&answer).ok_or_else(|| format!("{at} answers {answer:?}"))
}

fn request(at: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
