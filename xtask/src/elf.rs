//! What the headers of an ELF file say about how it is linked.
use anyhow::{Context, Result, bail, ensure};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const SHT_SYMTAB: u32 = 2;

/// What matters for a program that is to run anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Elf {
    /// `e_machine`: 62 is x86-64, 183 is AArch64.
    pub(crate) machine: u16,
    /// It names a dynamic loader.
    pub(crate) interpreter: bool,
    /// How many shared libraries it asks for.
    pub(crate) needed: usize,
    /// It still has its symbol table.
    pub(crate) symbols: bool,
}

impl Elf {
    /// Reads the headers of a 64-bit little-endian ELF file (the System V ABI, chapters 4 and 5).
    pub(crate) fn parse(file: &[u8]) -> Result<Elf> {
        ensure!(file.starts_with(b"\x7fELF"), "not an ELF file");
        ensure!(file.get(4..6) == Some(&[2, 1]), "not a 64-bit little-endian ELF file");
        let mut elf = Elf { machine: u16_at(file, 18)?, interpreter: false, needed: 0, symbols: false };
        let (segments, segment_size, segment_count) = table(file, 32, 54)?;
        let mut executable_content = false;
        for index in 0..segment_count {
            let header = entry(segments, segment_size, index)?;
            executable_content = true;
            match u32_at(file, header)? {
                PT_INTERP => elf.interpreter = true,
                PT_DYNAMIC => {
                    let (offset, size) = (word_at(file, header + 8)?, word_at(file, header + 32)?);
                    let end = offset.checked_add(size).context("a segment larger than memory")?;
                    let dynamic = file.get(offset..end).context("a dynamic section beyond the file's end")?;
                    let tags = dynamic.chunks_exact(16).map(|pair| u64_at(pair, 0));
                    elf.needed += tags.filter(|tag| tag.as_ref().is_ok_and(|tag| *tag == DT_NEEDED)).count();
                }
                _ => {}
            }
        }
        ensure!(executable_content, "no segments: an object file, not a program");
        let (sections, section_size, section_count) = table(file, 40, 58)?;
        for index in 0..section_count {
            let header = entry(sections, section_size, index)?;
            elf.symbols |= u32_at(file, header + 4)? == SHT_SYMTAB;
        }
        Ok(elf)
    }

    /// Fails, with what is wrong, unless the program is static and stripped.
    pub(crate) fn require_static(self, machine: u16) -> Result<()> {
        if self.machine != machine {
            bail!("built for machine {}, not {machine}", self.machine);
        }
        if self.interpreter || self.needed > 0 {
            bail!("not static: loader {}, {} shared libraries", self.interpreter, self.needed);
        }
        if self.symbols {
            bail!("not stripped: it has a symbol table");
        }
        Ok(())
    }
}

/// Offset, size of an entry, and count of a header table.
fn table(file: &[u8], offset_at: usize, size_at: usize) -> Result<(usize, usize, usize)> {
    Ok((word_at(file, offset_at)?, u16_at(file, size_at)?.into(), u16_at(file, size_at + 2)?.into()))
}

fn entry(start: usize, size: usize, index: usize) -> Result<usize> {
    // Room for the fields that are read behind it, so that no later sum overflows.
    size.checked_mul(index)
        .and_then(|at| at.checked_add(start))
        .filter(|at| *at < usize::MAX - 64)
        .context("an impossible offset")
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N]> {
    let end = at.checked_add(N).context("an impossible offset")?;
    let slice = file.get(at..end).context("cut short")?;
    Ok(slice.try_into()?)
}

fn u16_at(file: &[u8], at: usize) -> Result<u16> {
    bytes(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Result<u32> {
    bytes(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: usize) -> Result<u64> {
    bytes(file, at).map(u64::from_le_bytes)
}

fn word_at(file: &[u8], at: usize) -> Result<usize> {
    usize::try_from(u64_at(file, at)?).context("an impossible offset")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_itself_is_a_dynamic_program_with_symbols() {
        if !cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")) {
            return;
        }
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&me).unwrap();
        assert!(elf.interpreter && elf.needed > 0, "{elf:?}");
        let error = elf.require_static(elf.machine).unwrap_err().to_string();
        assert!(error.contains("not static"), "{error}");
    }

    #[test]
    fn a_static_stripped_program_passes_and_each_flaw_is_named() {
        let good = Elf { machine: 62, interpreter: false, needed: 0, symbols: false };
        good.require_static(62).unwrap();
        for (flawed, word) in [
            (Elf { machine: 183, ..good }, "machine 183"),
            (Elf { interpreter: true, ..good }, "not static"),
            (Elf { needed: 2, ..good }, "2 shared"),
            (Elf { symbols: true, ..good }, "not stripped"),
        ] {
            let error = flawed.require_static(62).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn every_cut_and_garbled_header_is_an_error_or_an_answer_but_no_panic() {
        let mut file = vec![0u8; 256];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32] = 64; // one program header at 64
        file[54] = 56;
        file[56] = 1;
        file[64] = 2; // PT_DYNAMIC at 128, 32 bytes
        file[72] = 128;
        file[96] = 32;
        file[128] = 1; // DT_NEEDED
        assert_eq!(Elf::parse(&file).unwrap().needed, 1);
        for length in 0..file.len() {
            let _ = Elf::parse(&file[..length]);
        }
        for at in 6..160 {
            for value in [0x7f, 0xff] {
                let mut garbled = file.clone();
                garbled[at..(at + 8).min(256)].fill(value);
                let _ = Elf::parse(&garbled);
            }
        }
    }
}
