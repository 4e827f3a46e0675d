//! Kubernetes' own types: quantities, URLs, addresses and their ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use super::super::eval::{Budget, error, no_overload};
use super::super::text;
use super::super::value::Val;
use super::Evaluated;
use crate::quantity::Amount;

pub(super) fn of_quantity<'a>(name: &str, amount: Amount, arguments: &[Val<'a>]) -> Evaluated<'a> {
    let other = || match arguments {
        [Val::Quantity(other)] => Some(*other),
        [Val::Int(units)] => Some(Amount::units(*units, crate::quantity::Notation::Decimal)),
        _ => None,
    };
    match (name, other()) {
        ("isGreaterThan", Some(other)) => Ok(Val::Bool(amount > other)),
        ("isLessThan", Some(other)) => Ok(Val::Bool(amount < other)),
        ("compareTo", Some(other)) => Ok(Val::Int(amount.cmp(&other) as i64)),
        ("add", Some(other)) => Ok(Val::Quantity(amount.plus(other))),
        ("sub", Some(other)) => Ok(Val::Quantity(amount.plus(other.negated()))),
        ("sign", None) => Ok(Val::Int(amount.cmp(&Amount::ZERO) as i64)),
        ("isInteger", None) => Ok(Val::Bool(amount.is_whole())),
        ("asInteger", None) if amount.is_whole() => Ok(Val::Int(amount.value())),
        ("asInteger", None) => error("cannot convert value to integer"),
        ("asApproximateFloat", None) => Ok(Val::Double(amount.milli_value() as f64 / 1000.0)),
        _ => no_overload(),
    }
}

pub(super) fn of_url<'a>(name: &str, url: &str, budget: &mut Budget) -> Evaluated<'a> {
    budget.pay(1 + url.len() as u64 / 10)?;
    let Some(parts) = text::url(url) else { return no_overload() };
    let host_name = match parts.host.rsplit_once(':') {
        Some((name, _)) if !parts.host.ends_with(']') => name,
        _ => parts.host,
    };
    Ok(match name {
        "getScheme" => Val::text(parts.scheme),
        "getHost" => Val::text(parts.host),
        "getHostname" => Val::text(host_name.trim_matches(['[', ']'])),
        "getPort" => Val::text(parts.host[host_name.len()..].trim_start_matches(':')),
        "getEscapedPath" => Val::text(parts.path),
        "getQuery" => {
            let mut entries: Vec<(Val<'a>, Val<'a>)> = Vec::new();
            for (key, value) in parts
                .query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            {
                budget.pay(1 + entries.len() as u64)?;
                let key = Val::text(key);
                match entries.iter_mut().find(|(known, _)| known.equals(&key)) {
                    Some((_, Val::List(values))) => Rc::make_mut(values).push(Val::text(value)),
                    _ => entries.push((key, Val::list(vec![Val::text(value)]))),
                }
            }
            Val::Map(Rc::new(entries))
        }
        _ => return no_overload(),
    })
}

pub(super) fn of_ip<'a>(name: &str, address: IpAddr) -> Evaluated<'a> {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0) == 0xfe80,
    };
    let is_link_local_multicast = match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => (v6.segments()[0] & 0xff0f) == 0xff02,
    };
    Ok(match name {
        "family" => Val::Int(if address.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Val::Bool(address.is_unspecified()),
        "isLoopback" => Val::Bool(address.is_loopback()),
        "isLinkLocalUnicast" => Val::Bool(is_link_local),
        "isLinkLocalMulticast" => Val::Bool(is_link_local_multicast),
        "isGlobalUnicast" => {
            let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
            let global =
                !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_link_local);
            Val::Bool(global && !broadcast)
        }
        _ => return no_overload(),
    })
}

pub(super) fn of_cidr<'a>(name: &str, address: IpAddr, bits: u8, arguments: &[Val<'a>]) -> Evaluated<'a> {
    let network = text::masked(address, bits);
    match (name, arguments) {
        ("ip", []) => Ok(Val::Ip(address)),
        ("prefixLength", []) => Ok(Val::Int(i64::from(bits))),
        ("masked", []) => Ok(Val::Cidr(
            match address {
                IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(network).unwrap_or_default()).into(),
                IpAddr::V6(_) => Ipv6Addr::from(network).into(),
            },
            bits,
        )),
        ("containsIP", [other]) => {
            let other = match other {
                Val::Ip(other) => Some(*other),
                other => other.as_text().and_then(text::ip),
            };
            let Some(other) = other else { return no_overload() };
            Ok(Val::Bool(other.is_ipv4() == address.is_ipv4() && text::masked(other, bits) == network))
        }
        ("containsCIDR", [other]) => {
            let other = match other {
                Val::Cidr(other, length) => Some((*other, *length)),
                other => other.as_text().and_then(text::cidr),
            };
            let Some((other, length)) = other else { return no_overload() };
            let inside = other.is_ipv4() == address.is_ipv4() && length >= bits;
            Ok(Val::Bool(inside && text::masked(other, bits) == network))
        }
        _ => no_overload(),
    }
}
