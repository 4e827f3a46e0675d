//! Amounts of cpu, memory and everything else that is counted: Kubernetes' quantities, exactly.
//!
//! Defined by the Kubernetes API reference, `resource.Quantity`: a signed decimal number with a suffix (`500m`, `1.5Gi`,
//! `1e3`). No floating point is involved.
//!
//! Invariant: an amount is a whole number of billionths between ±(2⁶³−1); what is finer is rounded away from zero, what
//! is larger is capped. Formatting what was parsed gives upstream's canonical form.

use std::cmp::Ordering;
use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;
const CAP_NANOS: i128 = i64::MAX as i128 * NANO;
/// Longer texts are refused before they are read.
const MAX_TEXT_BYTES: usize = 64;
/// Digits after the point that count; further ones only round up.
const MAX_FRACTION_DIGITS: usize = 18;

/// A text that is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The family of suffixes that an amount was written with and is shown with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// `n u m k M G T P E`.
    Decimal,
    /// `Ki Mi Gi Ti Pi Ei`.
    Binary,
    /// `e3`.
    Exponent,
}

/// A parsed quantity.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    nanos: i128,
    notation: Notation,
}

impl Amount {
    pub const ZERO: Amount = Amount { nanos: 0, notation: Notation::Decimal };

    /// # Errors
    /// If the text is not a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            return Err(QuantityError::Format);
        }
        let (negative, unsigned) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (scale, notation) = Scale::parse(suffix)?;
        let nanos = scale.whole_nanos(whole).saturating_add(scale.fraction_nanos(fraction)).min(CAP_NANOS);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, notation })
    }

    /// An amount of whole units.
    pub fn units(units: i64, notation: Notation) -> Self {
        Self { nanos: i128::from(units) * NANO, notation }
    }

    /// An amount of thousandths.
    pub fn millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * (NANO / 1000), notation: Notation::Decimal }
    }

    /// As much less than nothing.
    #[must_use]
    pub fn negated(self) -> Self {
        Self { nanos: -self.nanos, notation: self.notation }
    }

    /// Whole units, rounded up as upstream's `Value()`.
    pub fn value(self) -> i64 {
        saturate(div_ceil(self.nanos, NANO))
    }

    /// Thousandths, rounded up as upstream's `MilliValue()`; capped at what fits.
    pub fn milli_value(self) -> i64 {
        saturate(div_ceil(self.nanos, NANO / 1000))
    }

    /// Whole thousandths, rounded away from zero.
    #[must_use]
    pub fn in_millis(self) -> Self {
        const MILLI: i128 = NANO / 1000;
        let nanos = self.nanos.signum() * div_ceil(self.nanos.abs(), MILLI) * MILLI;
        Self { nanos, notation: self.notation }
    }

    /// Whether the amount is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// The sum, capped; in the notation of the first, unless that is nothing.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let notation = if self.nanos == 0 { other.notation } else { self.notation };
        Self { nanos: (self.nanos + other.nanos).clamp(-CAP_NANOS, CAP_NANOS), notation }
    }

    /// The difference, capped.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.plus(other.negated())
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Amount {}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Amount {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Amount {
    /// Upstream's canonical form: no fraction, the largest suffix that needs none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * NANO;
        match self.notation {
            Notation::Binary if !small && self.is_whole() => format_binary(self.nanos / NANO, f),
            Notation::Exponent => format_decimal(self.nanos, f, |power| match power {
                0 => String::new(),
                power => format!("e{power}"),
            }),
            Notation::Binary | Notation::Decimal => format_decimal(self.nanos, f, |power| {
                let index = usize::try_from((power + 9) / 3).unwrap_or_default();
                ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"].get(index).copied().unwrap_or_default().to_owned()
            }),
        }
    }
}

/// What one unit of the number before a suffix is worth.
enum Scale {
    /// A power of ten, in units.
    Ten(i32),
    /// A power of two, in units.
    Two(u32),
}

impl Scale {
    fn parse(suffix: &str) -> Result<(Self, Notation), QuantityError> {
        let ten = |power| Ok((Scale::Ten(power), Notation::Decimal));
        let two = |power| Ok((Scale::Two(power), Notation::Binary));
        match suffix {
            "n" => ten(-9),
            "u" => ten(-6),
            "m" => ten(-3),
            "" => ten(0),
            "k" => ten(3),
            "M" => ten(6),
            "G" => ten(9),
            "T" => ten(12),
            "P" => ten(15),
            "E" => ten(18),
            "Ki" => two(10),
            "Mi" => two(20),
            "Gi" => two(30),
            "Ti" => two(40),
            "Pi" => two(50),
            "Ei" => two(60),
            _ => Self::parse_exponent(suffix),
        }
    }

    fn parse_exponent(suffix: &str) -> Result<(Self, Notation), QuantityError> {
        let is_suffix = suffix.chars().all(|c| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit());
        let bad = if is_suffix { QuantityError::Suffix } else { QuantityError::Format };
        let digits = suffix.strip_prefix(['e', 'E']).ok_or_else(|| bad.clone())?;
        let power: i32 = digits.parse().map_err(|_| bad)?;
        // Beyond these every number is nothing or the cap.
        Ok((Scale::Ten(power.clamp(-80, 80)), Notation::Exponent))
    }

    fn whole_nanos(&self, digits: &str) -> i128 {
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return 0;
        }
        // More digits than i128 holds are dropped from the end and made up for by the power.
        let (head, tail) = digits.split_at(digits.len().min(30));
        let head: i128 = head.parse().unwrap_or(i128::MAX);
        match *self {
            Scale::Ten(power) => shift(head, power + 9 + tail.len() as i32),
            Scale::Two(power) if tail.is_empty() => head.saturating_mul(NANO).saturating_mul(1 << power),
            Scale::Two(_) => i128::MAX,
        }
    }

    fn fraction_nanos(&self, digits: &str) -> i128 {
        let digits = digits.trim_end_matches('0');
        let (head, tail) = digits.split_at(digits.len().min(MAX_FRACTION_DIGITS));
        if head.is_empty() {
            return 0;
        }
        let count = head.len() as i32;
        // At most 18 digits were kept.
        let head: i128 = head.parse().unwrap_or_default();
        let rest = i128::from(!tail.is_empty());
        match *self {
            Scale::Ten(power) if power + 9 - count >= 0 => shift(head, power + 9 - count).saturating_add(rest),
            Scale::Ten(power) => shift(head, power + 9 - count),
            Scale::Two(power) if count <= 9 => shift(head, 9 - count).saturating_mul(1 << power),
            Scale::Two(power) => shift(head.saturating_mul(1 << power), 9 - count).saturating_add(rest),
        }
    }
}

/// `value` times a power of ten, rounded up, saturating.
fn shift(value: i128, power: i32) -> i128 {
    match u32::try_from(power) {
        Ok(up) => 10i128.checked_pow(up).map_or(i128::MAX, |factor| value.saturating_mul(factor)),
        Err(_) => 10i128.checked_pow(power.unsigned_abs()).map_or(1, |factor| div_ceil(value, factor)),
    }
}

/// Division that rounds towards positive infinity, away from zero for what upstream measures.
fn div_ceil(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn format_decimal(nanos: i128, f: &mut fmt::Formatter<'_>, suffix: impl Fn(i32) -> String) -> fmt::Result {
    let (mut mantissa, mut power) = (nanos, -9);
    while mantissa != 0 && mantissa % 1000 == 0 && power < 18 {
        mantissa /= 1000;
        power += 3;
    }
    write!(f, "{mantissa}{}", suffix(if mantissa == 0 { 0 } else { power }))
}

fn format_binary(units: i128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (mut mantissa, mut index) = (units, 0);
    while mantissa % 1024 == 0 && index < 6 {
        mantissa /= 1024;
        index += 1;
    }
    write!(f, "{mantissa}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][index])
}

/// A quantity in thousandths, rounded up: what cpu is counted in.
///
/// # Errors
/// If the text is not a quantity.
pub fn cpu_millis(quantity: &Quantity) -> Result<i64, QuantityError> {
    Amount::parse(&quantity.0).map(Amount::milli_value)
}

/// A quantity in whole units, rounded up: what memory, storage and pods are counted in.
///
/// # Errors
/// If the text is not a quantity.
pub fn bytes(quantity: &Quantity) -> Result<i64, QuantityError> {
    Amount::parse(&quantity.0).map(Amount::value)
}

/// The quantity of so many thousandths of a cpu.
pub fn from_cpu_millis(millis: i64) -> Quantity {
    Quantity(Amount::millis(millis).to_string())
}

/// The quantity of so many bytes, with a binary suffix.
pub fn from_bytes(bytes: i64) -> Quantity {
    Quantity(Amount::units(bytes, Notation::Binary).to_string())
}

/// Upstream's canonical form of a quantity.
///
/// # Errors
/// If the text is not a quantity.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    Amount::parse(text).map(|amount| amount.to_string())
}

/// Compares two quantities by what they are worth.
///
/// # Errors
/// If either text is not a quantity.
pub fn compare(a: &Quantity, b: &Quantity) -> Result<Ordering, QuantityError> {
    Ok(Amount::parse(&a.0)?.cmp(&Amount::parse(&b.0)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canon(text: &str) -> String {
        canonical(text).unwrap()
    }

    #[test]
    fn canonical_forms_are_upstreams() {
        let table = [
            ("0", "0"),
            ("0m", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1.5", "1500m"),
            ("100", "100"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("64Mi", "64Mi"),
            ("1023", "1023"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e-3", "12e-3"),
            ("100k", "100k"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-1.5", "-1500m"),
            ("+3", "3"),
            ("1E", "1E"),
            ("9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "9223372036854775807"),
            ("1000000E", "9223372036854775807"),
            ("000", "0"),
        ];
        for (text, expected) in table {
            assert_eq!(canon(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for text in ["", "x", "1x", "1.2.3", ".", "-", "1Kib", "1 Gi", "Gi", "1e", "1mm", "--1", "0x10", "１"] {
            assert!(Amount::parse(text).is_err(), "{text}");
        }
        assert!(Amount::parse(&"9".repeat(65)).is_err());
    }

    #[test]
    fn cpu_and_memory() {
        let q = |text: &str| Quantity(text.to_owned());
        assert_eq!(cpu_millis(&q("2")).unwrap(), 2000);
        assert_eq!(cpu_millis(&q("0.1m")).unwrap(), 1);
        assert_eq!(bytes(&q("64Mi")).unwrap(), 64 << 20);
        assert_eq!(bytes(&q("100m")).unwrap(), 1);
        assert_eq!(from_cpu_millis(1500).0, "1500m");
        assert_eq!(from_bytes(3 << 30).0, "3Gi");
        assert_eq!(compare(&q("1Gi"), &q("1G")).unwrap(), Ordering::Greater);
    }

    proptest! {
        #[test]
        fn formatting_and_parsing_agree(units in any::<i64>(), binary: bool) {
            let notation = if binary { Notation::Binary } else { Notation::Decimal };
            let amount = Amount::units(units.max(-i64::MAX), notation);
            prop_assert_eq!(Amount::parse(&amount.to_string()).unwrap(), amount);
        }

        #[test]
        fn millis_survive(millis in any::<i64>()) {
            prop_assert_eq!(cpu_millis(&from_cpu_millis(millis)).unwrap(), millis);
        }

        #[test]
        fn canonical_is_a_fixed_point(text in "[+-]?[0-9]{1,20}(\\.[0-9]{0,20})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]|e-[0-9])?") {
            let once = canon(&text);
            prop_assert_eq!(canon(&once), once.clone());
            prop_assert_eq!(Amount::parse(&once).unwrap(), Amount::parse(&text).unwrap());
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = Amount::parse(&text).map(|a| (a.value(), a.milli_value(), a.to_string()));
        }
    }
}
