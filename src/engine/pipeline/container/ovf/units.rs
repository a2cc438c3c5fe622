//! Units of the CIM schema (DSP0004, "Programmatic Units") as far as amounts of bytes have them.

/// The bytes of `amount` of `units`; `None` for what is no unit of bytes, or too much.
pub(super) fn bytes(amount: u64, units: Option<&str>) -> Option<u64> {
    let Some(units) = units.map(str::trim).filter(|units| !units.is_empty()) else { return Some(amount) };
    let lower = units.to_ascii_lowercase();
    let factor = match lower.as_str() {
        "byte" | "bytes" => 1,
        // What descriptors before version 1.0 have, and some still.
        "kilobytes" | "kb" => 1 << 10,
        "megabytes" | "mb" => 1 << 20,
        "gigabytes" | "gb" => 1 << 30,
        "terabytes" | "tb" => 1 << 40,
        _ => product(&lower)?,
    };
    amount.checked_mul(factor)
}

/// `byte * 2^30`, with any number of factors.
fn product(units: &str) -> Option<u64> {
    let mut factors = units.split('*').map(str::trim);
    if !matches!(factors.next(), Some("byte" | "bytes")) {
        return None;
    }
    factors.try_fold(1_u64, |product, factor| {
        let value = match factor.split_once('^') {
            None => factor.parse().ok()?,
            Some((base, exponent)) => base.trim().parse::<u64>().ok()?.checked_pow(exponent.trim().parse().ok()?)?,
        };
        product.checked_mul(value)
    })
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn units_are_factors() {
        for (units, expected) in [
            (None, Some(3)),
            (Some("byte"), Some(3)),
            (Some("byte * 2^30"), Some(3 << 30)),
            (Some("byte*10^9"), Some(3_000_000_000)),
            (Some("byte * 512 * 2^10"), Some(3 * 512 * 1024)),
            (Some("MegaBytes"), Some(3 << 20)),
            (Some("bit * 2^30"), None),
            (Some("byte * 2^64"), None),
            (Some("byte * 2^63"), None),
            (Some("byte * x"), None),
        ] {
            assert_eq!(bytes(3, units), expected, "{units:?}");
        }
    }
}
