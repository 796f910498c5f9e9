//! A guest of a few dozen bytes: it proves that a monitor executes guests, how fast, and that memory and
//! device state survive a snapshot.
//!
//! 32-bit protected mode without paging, entered as PVH demands (an ELF note `XEN_ELFNOTE_PHYS32_ENTRY`,
//! xen/include/public/elfnote.h; the boot ABI is docs/misc/pvh.pandoc of Xen). It spins a counted loop,
//! then adds one to a counter in RAM and writes a letter for it to the first serial port, for ever:
//! `BCDE…PABC…`, each letter one beat.

/// Where the code is loaded.
const LOAD_ADDRESS: u32 = 0x10_0000;
/// Where the counter of beats is in guest RAM.
pub const COUNTER_ADDRESS: u64 = 0x20_0000;
/// Sizes of the parts of the file, in bytes: ELF header, two program headers, note, code.
const ELF_HEADER: u32 = 52;
const PROGRAM_HEADER: u32 = 32;
const NOTE: u32 = 20;
const CODE: u32 = 28;
const NOTE_OFFSET: u32 = ELF_HEADER + 2 * PROGRAM_HEADER;
const CODE_OFFSET: u32 = NOTE_OFFSET + NOTE;
const SIZE: u32 = CODE_OFFSET + CODE;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;

/// The guest as an ELF file that spins `iterations` times (of two instructions) a beat; zero counts as
/// 2^32.
#[must_use]
pub fn guest(iterations: u32) -> Vec<u8> {
    let mut file = Vec::with_capacity(SIZE as usize);
    elf_header(&mut file);
    // PT_LOAD: the whole file, readable, writable, executable.
    words(
        &mut file,
        &[1, 0, LOAD_ADDRESS, LOAD_ADDRESS, SIZE, SIZE, 7, 4096],
    );
    // PT_NOTE.
    let note = LOAD_ADDRESS + NOTE_OFFSET;
    words(&mut file, &[4, NOTE_OFFSET, note, note, NOTE, NOTE, 4, 4]);
    // Sizes of name and description, type, "Xen\0", the entry.
    words(
        &mut file,
        &[
            4,
            4,
            PHYS32_ENTRY,
            u32::from_le_bytes(*b"Xen\0"),
            LOAD_ADDRESS + CODE_OFFSET,
        ],
    );
    code(&mut file, iterations);
    file
}

/// `Elf32_Ehdr` of an executable for the 80386.
fn elf_header(file: &mut Vec<u8>) {
    // 32-bit, little endian, version 1.
    file.extend_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC and EM_386; version; entry; program headers; no section headers; no flags.
    words(
        file,
        &[2 | 3 << 16, 1, LOAD_ADDRESS + CODE_OFFSET, ELF_HEADER, 0, 0],
    );
    // Sizes and counts, sixteen bits each: this header, program headers, two of them, no sections.
    words(file, &[ELF_HEADER | PROGRAM_HEADER << 16, 2, 0]);
}

fn words(file: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        file.extend_from_slice(&word.to_le_bytes());
    }
}

fn code(file: &mut Vec<u8>, iterations: u32) {
    // mov edi, COUNTER_ADDRESS
    file.push(0xBF);
    file.extend_from_slice(&0x20_0000_u32.to_le_bytes());
    // mov dx, 0x3F8: the data register of the first serial port
    file.extend_from_slice(&[0x66, 0xBA, 0xF8, 0x03]);
    // beat: mov ecx, iterations
    file.push(0xB9);
    file.extend_from_slice(&iterations.to_le_bytes());
    // spin: dec ecx; jnz spin
    file.extend_from_slice(&[0x49, 0x75, 0xFD]);
    // inc dword [edi]; mov eax, [edi]; and al, 15; add al, 'A'; out dx, al
    file.extend_from_slice(&[0xFF, 0x07, 0x8B, 0x07, 0x24, 0x0F, 0x04, b'A', 0xEE]);
    // jmp beat: back over 5 + 3 + 9 + 2 bytes
    file.extend_from_slice(&[0xEB, 0xED]);
}

/// The letter of beat number `beat`, counted from 1.
#[must_use]
pub const fn letter(beat: u64) -> u8 {
    // Masked to four bits.
    b'A' + (beat & 15) as u8
}

/// How many beats `console` shows, or where a beat is missing or doubled: a guest whose memory or
/// processor state was not what it had been writes out of turn.
///
/// # Errors
/// The number of beats before the first wrong one.
pub fn count_beats(console: &[u8]) -> Result<u64, u64> {
    let mut beats = 0;
    for byte in console {
        if *byte != letter(beats + 1) {
            return Err(beats);
        }
        beats += 1;
    }
    Ok(beats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_a_valid_elf_with_a_pvh_note() {
        let file = guest(1000);
        assert_eq!(file.len(), SIZE as usize);
        let word = |at: u32| u32::from_le_bytes(file[at as usize..at as usize + 4].try_into().unwrap());
        assert_eq!(word(0), u32::from_le_bytes(*b"\x7fELF"));
        let entry = word(24);
        assert_eq!(entry, LOAD_ADDRESS + CODE_OFFSET);
        assert_eq!(word(NOTE_OFFSET + 16), entry, "the note names the entry");
        assert_eq!(word(NOTE_OFFSET + 8), PHYS32_ENTRY);
        assert_eq!(file[CODE_OFFSET as usize], 0xBF, "code begins at the entry");
        assert_eq!(word(CODE_OFFSET + 10), 1000);
        assert_eq!(word(CODE_OFFSET + 1), u32::try_from(COUNTER_ADDRESS).unwrap());
    }

    #[test]
    fn beats_are_counted_and_a_wrong_one_is_found() {
        for (console, want) in [
            (&b""[..], Ok(0)),
            (b"BCD", Ok(3)),
            (b"BCDEFGHIJKLMNOPABC", Ok(18)),
            (b"BCCD", Err(2)),
            (b"BCE", Err(2)),
            (b"A", Err(0)),
        ] {
            assert_eq!(count_beats(console), want, "{console:?}");
        }
    }
}
