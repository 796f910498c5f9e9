//! What a kernel module says about itself: the `.modinfo` section of its ELF file (elf(5),
//! include/linux/moduleinfo.h). Total over any bytes.

/// Offsets in the header and the section headers of a 64-bit little-endian ELF file.
mod at {
    pub(super) const SECTION_HEADERS: usize = 0x28;
    pub(super) const SECTION_HEADER_SIZE: usize = 0x3a;
    pub(super) const SECTION_COUNT: usize = 0x3c;
    pub(super) const NAMES_SECTION: usize = 0x3e;
    pub(super) const NAME: usize = 0x00;
    pub(super) const OFFSET: usize = 0x18;
    pub(super) const SIZE: usize = 0x20;
}

/// The names of the modules that this one needs, as they are written (`virtio_ring`), or what is
/// wrong with the file.
pub(crate) fn depends(module: &[u8]) -> Result<Vec<String>, &'static str> {
    let section = modinfo(module).ok_or("it is no 64-bit ELF file with a .modinfo section")?;
    let fields = section.split(|&byte| byte == 0);
    let mut lists = fields.filter_map(|field| field.strip_prefix(b"depends="));
    let list = lists.next().ok_or("its .modinfo has no depends=")?;
    let text = std::str::from_utf8(list).map_err(|_| "its depends= is no text")?;
    Ok(text
        .split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect())
}

/// The one spelling of a module's name: file names use dashes where the kernel uses underscores.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn modinfo(file: &[u8]) -> Option<&[u8]> {
    // Magic, 64-bit, little-endian.
    if !file.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(*chunk(file, at::SECTION_HEADERS)?)).ok()?;
    let each = usize::from(u16::from_le_bytes(*chunk(file, at::SECTION_HEADER_SIZE)?));
    let count = usize::from(u16::from_le_bytes(*chunk(file, at::SECTION_COUNT)?));
    let names_at = usize::from(u16::from_le_bytes(*chunk(file, at::NAMES_SECTION)?));
    let header = |index: usize| {
        let start = table.checked_add(index.checked_mul(each)?)?;
        file.get(start..start.checked_add(each)?)
    };
    let names = contents(file, header(names_at)?)?;
    (0..count).filter_map(header).find_map(|section| {
        let name_at = usize::try_from(u32::from_le_bytes(*chunk(section, at::NAME)?)).ok()?;
        let is_it = names.get(name_at..)?.starts_with(b".modinfo\0");
        is_it.then(|| contents(file, section)).flatten()
    })
}

/// The bytes of the section that `header` describes.
fn contents<'a>(file: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let offset = usize::try_from(u64::from_le_bytes(*chunk(header, at::OFFSET)?)).ok()?;
    let size = usize::try_from(u64::from_le_bytes(*chunk(header, at::SIZE)?)).ok()?;
    file.get(offset..offset.checked_add(size)?)
}

fn chunk<const N: usize>(bytes: &[u8], offset: usize) -> Option<&[u8; N]> {
    bytes.get(offset..)?.first_chunk()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file with the sections (none), `.modinfo`, names.
    fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = vec![0_u8; 64];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        let info_at = file.len() as u64;
        file.extend_from_slice(info);
        let names_at = file.len() as u64;
        file.extend_from_slice(names);
        let table = file.len() as u64;
        for (name, offset, size) in [(0, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            let mut header = vec![0_u8; 64];
            header[..4].copy_from_slice(&u32::to_le_bytes(name));
            header[at::OFFSET..][..8].copy_from_slice(&offset.to_le_bytes());
            header[at::SIZE..][..8].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file[at::SECTION_HEADERS..][..8].copy_from_slice(&table.to_le_bytes());
        file[at::SECTION_HEADER_SIZE..][..2].copy_from_slice(&64_u16.to_le_bytes());
        file[at::SECTION_COUNT..][..2].copy_from_slice(&3_u16.to_le_bytes());
        file[at::NAMES_SECTION..][..2].copy_from_slice(&2_u16.to_le_bytes());
        file
    }

    #[test]
    fn dependencies_are_read() {
        let info = b"license=GPL\0depends=virtio,virtio-ring\0name=virtio_net\0";
        assert_eq!(
            depends(&module(info)),
            Ok(vec!["virtio".to_owned(), "virtio_ring".to_owned()])
        );
        assert_eq!(depends(&module(b"depends=\0")), Ok(vec![]));
        assert!(depends(&module(b"license=GPL\0")).is_err());
        assert!(depends(b"\x7fELF").is_err());
        assert!(depends(b"").is_err());
    }

    proptest! {
        #[test]
        fn damaged_files_are_read_without_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
            let mut file = module(b"license=GPL\0depends=virtio\0");
            for (at, value) in flips {
                let at = at.index(file.len());
                file[at] = value;
            }
            let _any = depends(&file);
        }
    }
}
