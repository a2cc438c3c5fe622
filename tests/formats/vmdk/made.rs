//! A vmdk put together by hand, structure by structure, in any order.

use std::collections::BTreeMap;

/// Sectors of a grain.
pub const GRAIN: u64 = 128;

/// The descriptor of an ordinary disk.
pub fn descriptor(kind: &str, capacity: u64) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=7a5ee3b0\nparentCID=ffffffff\nisNativeSnapshot=\"no\"\nencoding=\"windows-1252\"\n\
         createType=\"{kind}\"\n\n# Extent description\nRDONLY {capacity} SPARSE \"generated-stream.vmdk\"\n\n\
         # The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\nddb.uuid = \"60 00 C2 97\"\nddb.comment = \"M\u{fc}ller\"\n"
    )
}

/// A header: `flags`, sectors of the disk, grain directory, overhead.
pub fn header(version: u32, flags: u32, capacity: u64, gd: u64, overhead: u64) -> Vec<u8> {
    let mut bytes = b"KDMV".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    for number in [capacity, GRAIN, 1, 20] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(512_u32.to_le_bytes());
    for number in [0, gd, overhead] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.push(0);
    bytes.extend(b"\n \r\n");
    bytes.extend(u16::from(flags & 1 << 16 != 0).to_le_bytes());
    bytes.resize(512, 0);
    bytes
}

/// A streamOptimized disk as VMware writes it, growing from call to call.
#[derive(Clone)]
pub struct Stream {
    pub bytes: Vec<u8>,
    pub capacity: u64,
    /// Entries of each table, by its number.
    tables: BTreeMap<u64, Vec<u32>>,
    /// Sector of each table.
    directory: BTreeMap<u64, u32>,
    gd: u64,
}

impl Stream {
    pub const FLAGS: u32 = 0x3_0001;

    pub fn new(capacity: u64) -> Self {
        Self::with_descriptor(capacity, &descriptor("streamOptimized", capacity))
    }

    pub fn with_descriptor(capacity: u64, text: &str) -> Self {
        let mut bytes = header(3, Self::FLAGS, capacity, u64::MAX, GRAIN);
        bytes.extend(text.as_bytes());
        assert!(bytes.len() <= 21 * 512);
        bytes.resize(usize::try_from(GRAIN * 512).unwrap(), 0);
        Self { bytes, capacity, tables: BTreeMap::new(), directory: BTreeMap::new(), gd: 0 }
    }

    pub fn sector(&self) -> u64 {
        self.bytes.len() as u64 / 512
    }

    fn pad(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// Compressed bytes under the marker of grain `number`, which its table names.
    pub fn packed(&mut self, number: u64, packed: &[u8]) -> &mut Self {
        let sector = u32::try_from(self.sector()).unwrap();
        self.tables.entry(number / 512).or_insert_with(|| vec![0; 512])[usize::try_from(number % 512).unwrap()] =
            sector;
        self.unnamed(number, packed)
    }

    /// The same, but no table names it.
    pub fn unnamed(&mut self, number: u64, packed: &[u8]) -> &mut Self {
        self.bytes.extend((number * GRAIN).to_le_bytes());
        self.bytes.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
        self.bytes.extend(packed);
        self.pad()
    }

    pub fn grain(&mut self, number: u64, data: &[u8]) -> &mut Self {
        self.packed(number, &zlib(data))
    }

    pub fn marker(&mut self, value: u64, kind: u32) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_le_bytes());
        self.pad()
    }

    /// Sets an entry of a table that is yet to be written.
    pub fn entry(&mut self, number: u64, value: u32) -> &mut Self {
        self.tables.entry(number / 512).or_insert_with(|| vec![0; 512])[usize::try_from(number % 512).unwrap()] = value;
        self
    }

    /// Table `index`, empty if it has no grains.
    pub fn table(&mut self, index: u64) -> &mut Self {
        self.marker(4, 1);
        self.directory.insert(index, u32::try_from(self.sector()).unwrap());
        let entries = self.tables.entry(index).or_insert_with(|| vec![0; 512]);
        self.bytes.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        self
    }

    /// Has the directory name another table.
    pub fn name(&mut self, index: u64, sector: u32) -> &mut Self {
        self.directory.insert(index, sector);
        self
    }

    pub fn directory(&mut self) -> &mut Self {
        let tables = self.capacity.div_ceil(GRAIN * 512);
        self.marker((tables * 4).div_ceil(512), 2);
        self.gd = self.sector();
        for index in 0..tables {
            self.bytes.extend(self.directory.get(&index).copied().unwrap_or(0).to_le_bytes());
        }
        self.pad()
    }

    pub fn footer(&mut self) -> &mut Self {
        self.marker(1, 3);
        let mut footer = self.bytes[..512].to_vec();
        footer[56..64].copy_from_slice(&self.gd.to_le_bytes());
        self.bytes.extend(footer);
        self
    }

    /// Everything behind the last grain table.
    pub fn end(&mut self) -> &mut Self {
        self.directory().footer().marker(0, 0)
    }
}

pub fn zlib(data: &[u8]) -> Vec<u8> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut packed = vec![0; compressor.zlib_compress_bound(data.len())];
    let length = compressor.zlib_compress(data, &mut packed).unwrap();
    packed.truncate(length);
    packed
}

/// A monolithicSparse disk of two tables: header, descriptor, directory at 21, tables at 22 and 26, grains from 128 on.
pub struct Sparse {
    pub bytes: Vec<u8>,
}

impl Sparse {
    pub const CAPACITY: u64 = GRAIN * 600;
    pub const DIRECTORY: usize = 21 * 512;
    pub const TABLES: usize = 22 * 512;

    /// Grains 0, 1, 3 and 599.
    pub fn new(flags: u32) -> Self {
        let mut bytes = header(1, flags, Self::CAPACITY, 21, GRAIN);
        bytes.extend(descriptor("monolithicSparse", Self::CAPACITY).as_bytes());
        bytes.resize(Self::DIRECTORY, 0);
        bytes.extend([22_u32, 26].iter().flat_map(|sector| sector.to_le_bytes()));
        bytes.resize(128 * 512, 0);
        let mut made = Self { bytes };
        for (place, number) in (1_u32..).zip([0, 1, 3, 599]) {
            made.bytes.extend(super::bytes(place, 65_536, false));
            made.set_entry(number, 128 * place);
        }
        made
    }

    pub fn set_entry(&mut self, number: usize, sector: u32) -> &mut Self {
        self.set(Self::TABLES + number * 4, &sector.to_le_bytes())
    }

    pub fn set(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn content() -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(Self::CAPACITY * 512).unwrap()];
        for (place, number) in (1_u32..).zip([0, 1, 3, 599]) {
            disk[number * 65_536..][..65_536].copy_from_slice(&super::bytes(place, 65_536, false));
        }
        disk
    }
}
