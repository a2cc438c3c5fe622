//! Bounds on each image, as agents and the verbs that need no cluster take them on their command lines.

use clap::Args;
use vitrine_engine::model::Limits;

/// Bounds on each image; more is refused.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Bounds (in bytes but for the expansion; what reaches past them is refused)")]
pub struct Bounds {
    /// Largest disk of a guest [default: 16 TiB]
    #[arg(long, value_name = "BYTES")]
    max_virtual_size: Option<u64>,
    /// Most bytes received for one image [default: 4 TiB]
    #[arg(long, value_name = "BYTES")]
    max_size: Option<u64>,
    /// How many bytes of data may come out of one received [default: 1100]
    #[arg(long, value_name = "RATIO")]
    max_expansion: Option<u64>,
    /// Memory for the tables of one image [default: 32 MiB]
    #[arg(long, value_name = "BYTES")]
    max_table_memory: Option<u64>,
    /// Memory that unpacking may take: windows of zstd, dictionaries of xz [default: 66 MiB]
    #[arg(long, value_name = "BYTES")]
    unpack_memory: Option<u64>,
    /// Largest spill file, where bytes wait on disk for their place [default: 64 GiB]
    #[arg(long, value_name = "BYTES")]
    max_spill: Option<u64>,
    /// Memory for bytes that wait for their place [default: 16 MiB]
    #[arg(long, value_name = "BYTES")]
    window_memory: Option<u64>,
}

impl Bounds {
    /// The engine's limits with these in them.
    pub fn limits(&self) -> Limits {
        let base = Limits::default();
        Limits {
            max_virtual_size: self.max_virtual_size.unwrap_or(base.max_virtual_size),
            max_size: self.max_size.unwrap_or(base.max_size),
            max_expansion: self.max_expansion.unwrap_or(base.max_expansion),
            expansion_floor: base.expansion_floor,
            max_table_memory: self.max_table_memory.unwrap_or(base.max_table_memory),
            unpack_memory: self.unpack_memory.unwrap_or(base.unpack_memory),
            window_memory: self.window_memory.unwrap_or(base.window_memory),
            max_spill: self.max_spill.unwrap_or(base.max_spill),
            chunk_memory: base.chunk_memory,
            store_stall: base.store_stall,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    type Field = fn(&mut Limits) -> &mut u64;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bounds: Bounds,
    }

    #[test]
    fn bounds_replace_defaults_one_by_one() {
        let limits = |line: &[&str]| Line::try_parse_from(["x"].iter().chain(line)).unwrap().bounds.limits();
        let base = Limits::default();
        assert_eq!(limits(&[]), base);
        let cases: [(&str, Field); 7] = [
            ("--max-virtual-size", |l| &mut l.max_virtual_size),
            ("--max-size", |l| &mut l.max_size),
            ("--max-expansion", |l| &mut l.max_expansion),
            ("--max-table-memory", |l| &mut l.max_table_memory),
            ("--unpack-memory", |l| &mut l.unpack_memory),
            ("--max-spill", |l| &mut l.max_spill),
            ("--window-memory", |l| &mut l.window_memory),
        ];
        for (option, field) in cases {
            let mut wanted = base.clone();
            *field(&mut wanted) = 1025;
            assert_eq!(limits(&[option, "1025"]), wanted, "{option}");
        }
    }
}
