//! Values as texts, and texts as values.

use std::net::IpAddr;

use jiff::SignedDuration;

use super::value::Val;

/// Go's way to write a duration: `1h30m`, `1.5s`, `-2ms`.
pub(crate) fn duration(text: &str) -> Option<SignedDuration> {
    const UNITS: &[(&str, f64)] =
        &[("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, scale) =
            UNITS.iter().filter(|(unit, _)| rest.starts_with(unit)).max_by_key(|(unit, _)| unit.len())?;
        seconds += number * scale;
        rest = &rest[unit.len()..];
    }
    SignedDuration::try_from_secs_f64(if negative { -seconds } else { seconds }).ok()
}

/// What `string()` makes of a value; `None` if it makes nothing of it.
pub(super) fn words(value: &Val<'_>) -> Option<String> {
    Some(match value {
        Val::Bool(value) => value.to_string(),
        Val::Int(value) => value.to_string(),
        Val::UInt(value) => value.to_string(),
        Val::Double(value) => double(*value),
        Val::Text(text) => text.to_string(),
        Val::Borrowed(text) => (*text).to_owned(),
        Val::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Val::Timestamp(time) => time.to_string(),
        Val::Duration(duration) => format!("{}s", double(duration.as_secs_f64())),
        Val::Type(name) => (*name).to_owned(),
        Val::Ip(address) => address.to_string(),
        Val::Cidr(address, bits) => format!("{address}/{bits}"),
        Val::Url(url) => url.to_string(),
        Val::Quantity(amount) => amount.to_string(),
        _ => return None,
    })
}

fn double(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else if value != 0.0 && (value.abs() < 1e-4 || value.abs() >= 1e21) {
        // Go writes two digits of an exponent at least, with its sign.
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let number: i32 = exponent.parse().unwrap_or_default();
        format!("{mantissa}e{}{:02}", if number < 0 { '-' } else { '+' }, number.abs())
    } else {
        value.to_string()
    }
}

/// An address in its one form: no zones, no IPv4 inside IPv6, no leading zeros.
pub(super) fn ip(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

pub(super) fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address = ip(address)?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let plain =
        bits.len() <= 3 && bits.bytes().all(|byte| byte.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    bits.parse::<u8>().ok().filter(|bits| plain && *bits <= width).map(|bits| (address, bits))
}

/// The address with all bits after the first `bits` zero, as a number.
pub(super) fn masked(address: IpAddr, bits: u8) -> u128 {
    let (number, width) = match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let rest = u32::from(width - bits.min(width));
    number.checked_shr(rest).unwrap_or(0).checked_shl(rest).unwrap_or(0)
}

/// The parts of an absolute URL or of an absolute path: scheme, host with port, path, query.
pub(super) struct Parts<'a> {
    pub scheme: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    pub query: &'a str,
}

pub(super) fn url(text: &str) -> Option<Parts<'_>> {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
        return None;
    }
    let text = text.split('#').next().unwrap_or_default();
    let (before, query) = text.split_once('?').unwrap_or((text, ""));
    if before.starts_with('/') {
        return Some(Parts { scheme: "", host: "", path: before, query });
    }
    let (scheme, rest) = before.split_once(':')?;
    let good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    if !good {
        return None;
    }
    let Some(rest) = rest.strip_prefix("//") else {
        return rest.starts_with('/').then_some(Parts { scheme, host: "", path: rest, query });
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let host = rest[..end].rsplit('@').next().unwrap_or_default();
    let port = host.rsplit_once(':').filter(|_| !host.ends_with(']')).map_or("0", |(_, port)| port);
    port.bytes().all(|byte| byte.is_ascii_digit()).then_some(Parts { scheme, host, path: &rest[end..], query })
}
