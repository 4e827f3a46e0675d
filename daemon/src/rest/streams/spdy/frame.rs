//! Frames as bytes (sections 2.2 and 2.6 of the draft).
//!
//! Invariant: total: any eight bytes are a head or an error, any body is a frame or an error.

use super::SpdyError;

/// Of every frame.
pub const HEAD_BYTES: usize = 8;
/// The largest control frame that is read; headers of these streams are a few hundred bytes.
pub const MAX_CONTROL_BYTES: usize = 64 * 1024;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const STREAM_MASK: u32 = 0x7fff_ffff;
const INITIAL_WINDOW_SETTING: u32 = 7;

/// Of RST_STREAM.
pub const REFUSED_STREAM: u32 = 3;
pub const CANCEL: u32 = 5;
pub const FLOW_CONTROL_ERROR: u32 = 7;

#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    Control { kind: u16, flags: u8, length: usize },
    Data { stream: u32, fin: bool, length: usize },
}

/// A control frame whose header block, where it has one, is still compressed.
#[derive(Debug, PartialEq, Eq)]
pub enum Control {
    SynStream {
        stream: u32,
        fin: bool,
        unidirectional: bool,
        block: Vec<u8>,
    },
    SynReply {
        stream: u32,
        fin: bool,
        block: Vec<u8>,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Settings {
        initial_window_bytes: Option<u32>,
    },
    Ping(u32),
    GoAway,
    Headers {
        stream: u32,
        fin: bool,
        block: Vec<u8>,
    },
    Window {
        stream: u32,
        delta_bytes: u32,
    },
    /// To be ignored (section 2.2.1).
    Unknown,
}

/// # Errors
/// If it is of another version, or too long to be read.
pub fn head(bytes: [u8; HEAD_BYTES]) -> Result<Head, SpdyError> {
    let first = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let flags = bytes[4];
    let length = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
    if first & !STREAM_MASK == 0 {
        return Ok(Head::Data { stream: first, fin: flags & FIN != 0, length });
    }
    if (first >> 16) & 0x7fff != u32::from(VERSION) {
        return Err(SpdyError::Protocol("a frame of another version"));
    }
    if length > MAX_CONTROL_BYTES {
        return Err(SpdyError::Protocol("a control frame is too long"));
    }
    Ok(Head::Control { kind: (first & 0xffff) as u16, flags, length })
}

/// # Errors
/// If the body is not what its kind says.
pub fn control(kind: u16, flags: u8, body: &[u8]) -> Result<Control, SpdyError> {
    let short = SpdyError::Protocol("a control frame is too short");
    let number = |at: usize| {
        let bytes = body.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(u32::from_be_bytes).ok_or(SpdyError::Protocol("a control frame is too short"))
    };
    let stream = || number(0).map(|number| number & STREAM_MASK);
    let fin = flags & FIN != 0;
    Ok(match kind {
        1 => Control::SynStream {
            stream: stream()?,
            fin,
            unidirectional: flags & UNIDIRECTIONAL != 0,
            block: body.get(10..).ok_or(short)?.to_vec(),
        },
        2 => Control::SynReply { stream: stream()?, fin, block: body.get(4..).ok_or(short)?.to_vec() },
        3 => Control::Reset { stream: stream()?, status: number(4)? },
        4 => Control::Settings { initial_window_bytes: initial_window(number(0)?, body)? },
        6 => Control::Ping(number(0)?),
        7 => Control::GoAway,
        8 => Control::Headers { stream: stream()?, fin, block: body.get(4..).ok_or(short)?.to_vec() },
        9 => Control::Window { stream: stream()?, delta_bytes: number(4)? & STREAM_MASK },
        _ => Control::Unknown,
    })
}

fn initial_window(count: u32, body: &[u8]) -> Result<Option<u32>, SpdyError> {
    let entries = body[4..].chunks_exact(8);
    if entries.len() != count as usize {
        return Err(SpdyError::Protocol("settings of another length than they say"));
    }
    let mut values = entries.filter_map(|entry| {
        let id = u32::from_be_bytes([0, entry[1], entry[2], entry[3]]);
        let value = u32::from_be_bytes([entry[4], entry[5], entry[6], entry[7]]);
        (id == INITIAL_WINDOW_SETTING).then_some(value.min(STREAM_MASK))
    });
    Ok(values.next_back())
}

/// The head of a data frame.
pub fn data(stream: u32, fin: bool, length: usize) -> [u8; HEAD_BYTES] {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [s0, s1, s2, s3] = (stream & STREAM_MASK).to_be_bytes();
    [s0, s1, s2, s3, u8::from(fin), a, b, c]
}

fn encode(kind: u16, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEAD_BYTES + length);
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    let [_, a, b, c] = (length as u32).to_be_bytes();
    frame.extend_from_slice(&[flags, a, b, c]);
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    encode(2, 0, &[&stream.to_be_bytes(), block])
}

pub fn reset(stream: u32, status: u32) -> Vec<u8> {
    encode(3, 0, &[&stream.to_be_bytes(), &status.to_be_bytes()])
}

pub fn ping(id: u32) -> Vec<u8> {
    encode(6, 0, &[&id.to_be_bytes()])
}

pub fn go_away(last_stream: u32, status: u32) -> Vec<u8> {
    encode(7, 0, &[&last_stream.to_be_bytes(), &status.to_be_bytes()])
}

pub fn window(stream: u32, delta_bytes: u32) -> Vec<u8> {
    encode(9, 0, &[&stream.to_be_bytes(), &delta_bytes.to_be_bytes()])
}

/// What a client sends to open a stream.
#[cfg(test)]
pub fn syn_stream(stream: u32, fin: bool, block: &[u8]) -> Vec<u8> {
    encode(1, u8::from(fin), &[&stream.to_be_bytes(), &[0; 6], block])
}

/// What a client sends that limits how much it is sent.
#[cfg(test)]
pub fn settings(initial_window_bytes: u32) -> Vec<u8> {
    let id = INITIAL_WINDOW_SETTING.to_be_bytes();
    encode(4, 0, &[&1_u32.to_be_bytes(), &id, &initial_window_bytes.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(frame: &[u8]) -> Result<Control, SpdyError> {
        let (first, body) = frame.split_first_chunk::<HEAD_BYTES>().unwrap();
        match head(*first)? {
            Head::Control { kind, flags, length } => {
                assert_eq!(length, body.len());
                control(kind, flags, body)
            }
            Head::Data { .. } => panic!("a data frame"),
        }
    }

    #[test]
    fn frames_come_back() {
        let block = vec![7; 9];
        assert_eq!(
            decode(&syn_stream(5, true, &block)).unwrap(),
            Control::SynStream { stream: 5, fin: true, unidirectional: false, block: block.clone() }
        );
        assert_eq!(decode(&syn_reply(5, &block)).unwrap(), Control::SynReply { stream: 5, fin: false, block });
        assert_eq!(decode(&reset(3, CANCEL)).unwrap(), Control::Reset { stream: 3, status: CANCEL });
        assert_eq!(decode(&ping(9)).unwrap(), Control::Ping(9));
        assert_eq!(decode(&go_away(9, 0)).unwrap(), Control::GoAway);
        assert_eq!(decode(&window(1, 77)).unwrap(), Control::Window { stream: 1, delta_bytes: 77 });
        assert_eq!(decode(&settings(4_096)).unwrap(), Control::Settings { initial_window_bytes: Some(4_096) });
        assert_eq!(head(data(3, true, 70_000)).unwrap(), Head::Data { stream: 3, fin: true, length: 70_000 });
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for frame in [&ping(1)[..], &reset(1, 1), &window(1, 1), &syn_stream(1, false, b""), &settings(1)] {
            let (first, body) = frame.split_first_chunk::<HEAD_BYTES>().unwrap();
            let Ok(Head::Control { kind, flags, .. }) = head(*first) else { panic!() };
            for end in 0..body.len() {
                assert!(control(kind, flags, &body[..end]).is_err(), "{kind} cut at {end}");
            }
        }
        assert!(head([0x80, 2, 0, 1, 0, 0, 0, 0]).is_err(), "SPDY/2");
        assert!(head([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).is_err(), "16 MB of headers");
        assert_eq!(control(77, 0, b"").unwrap(), Control::Unknown);
    }
}
