//! Sizes, times, and what came from elsewhere, as they are written for people.

use jiff::Timestamp;

/// `text` with what could move a terminal's cursor or hide something replaced: parts of messages come from images.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// `bytes` for people, in powers of 1024, with the exact number where that is another.
pub fn size(bytes: u64) -> String {
    let short = short_size(bytes);
    if bytes < 1024 { short } else { format!("{short} ({bytes})") }
}

/// `bytes` for people, in powers of 1024.
pub fn short_size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 5] = [(50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        if bytes >> shift > 0 {
            let tenths = u128::from(bytes).saturating_mul(10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10).replace(".0 ", " ");
        }
    }
    format!("{bytes} B")
}

/// A count of bytes as Kubernetes has it; less than none is none.
pub fn bytes(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// How long ago `then` was, as kubectl writes ages.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    lasting(now.as_second().saturating_sub(then.as_second()).max(0).unsigned_abs())
}

/// A number of seconds, in the two units at most that matter.
pub fn lasting(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let two = |large: u64, unit: &str, small: u64, of: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{of}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(seconds / MINUTE, "m", seconds % MINUTE, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
        _ => format!("{}d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1024), "1 KiB (1024)");
        assert_eq!(size(10 << 30), "10 GiB (10737418240)");
        assert_eq!(short_size((1 << 30) + (512 << 20)), "1.5 GiB");
        assert_eq!(short_size(u64::MAX), "16383.9 PiB");
        assert_eq!(bytes(-1), 0);
    }

    #[test]
    fn ages_are_as_kubectl_has_them() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (303, "5m3s"),
            (3600, "60m"),
            (10_860, "3h1m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(lasting(seconds), text);
        }
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(age(Timestamp::from_second(990).unwrap(), now), "10s");
        assert_eq!(age(Timestamp::from_second(2000).unwrap(), now), "0s", "clocks differ");
    }

    #[test]
    fn nothing_from_an_image_reaches_the_terminal_raw() {
        assert_eq!(printable("\u{1b}[2Jx\ny"), "\u{fffd}[2Jx\u{fffd}y");
    }
}
