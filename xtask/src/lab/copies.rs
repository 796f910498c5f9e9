//! Sleepers by the thousand: copies of one that really was put to sleep, with records and files of their
//! own, made while no daemon runs. The daemon that starts next finds what so many sleeps would have left.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use dormouse_instance::record::InstanceRecord;
use dormouse_instance::rooms::Layout;
use dormouse_instance::trust::manifest::Manifest;
use dormouse_model::{Addresses, Digest, WorkloadId};
use dormouse_network::AddressPool;
use dormouse_store::{Batch, Store};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest as _, Sha256};

use super::{Guest, Lab};

/// Records in one transaction.
const BATCH: usize = 500;

impl Lab {
    /// Makes `count` copies of the sleeper `template`, whose memory must have been spilled and settled: the
    /// copies' is the same, so nothing is left to be done for any of them. The daemon must not run.
    pub(crate) fn copy_sleeper(
        &self,
        template: &Guest,
        pool: &mut AddressPool,
        count: u32,
    ) -> Result<Vec<Guest>> {
        let layout = Layout {
            data: self.data().to_owned(),
            run: self.run_directory().to_owned(),
            ram: self.run_directory().join("ram"),
        };
        let id: WorkloadId = template.id.parse().context("the template's id")?;
        let first_uid = self.first_uid() + 1;
        self.runtime.block_on(async {
            let store = Store::open(&self.data().join("dormouse.db")).await?;
            let original: InstanceRecord = store.get(id).await?.context("the template has no record")?;
            let snapshot = original
                .snapshot
                .as_ref()
                .context("the template does not sleep")?;
            ensure!(
                snapshot.resident_inode == 0,
                "the template's memory is still on tmpfs"
            );
            ensure!(
                !snapshot.memory_digest.is_empty(),
                "the template's memory is not settled"
            );
            let generation = snapshot.generation;
            let state =
                fs::read(layout.state_file(id, generation)).context("reading the template's state")?;
            let manifest =
                fs::read(layout.manifest_file(id, generation)).context("reading the template's manifest")?;
            let manifest =
                Manifest::decode(&manifest).map_err(|lost| anyhow!("the template's manifest: {lost}"))?;
            claim(pool, &original)?;
            let (mut made, mut batch) = (Vec::new(), Batch::new());
            for number in 1..=count {
                let copy = Copy {
                    id: WorkloadId::from_bits(id.bits() + u128::from(number)),
                    name: format!("{}-{number}", template.name),
                    addresses: pool.allocate().context("an address")?,
                    uid: first_uid + number,
                };
                let own_state = renamed(&state, &id.mark(), &copy.id.mark());
                let sealed = copy.write_files(&layout, id, &manifest, &own_state)?;
                batch = batch.put(copy.id, &copy.record(&original, &sealed));
                made.push(copy.guest());
                if made.len() % BATCH == 0 {
                    store.apply(std::mem::replace(&mut batch, Batch::new())).await?;
                }
            }
            store.apply(batch).await?;
            Ok(made)
        })
    }
}

/// What a copy has of its own.
struct Copy {
    id: WorkloadId,
    name: String,
    addresses: Addresses,
    uid: u32,
}

impl Copy {
    fn guest(&self) -> Guest {
        Guest {
            id: self.id.to_string(),
            name: self.name.clone(),
            addresses: [IpAddr::V4(self.addresses.ipv4), IpAddr::V6(self.addresses.ipv6)],
        }
    }

    fn record(&self, original: &InstanceRecord, sealed: &Sealed) -> InstanceRecord {
        let mut record = original.clone();
        record.id = self.id.bits().to_be_bytes().to_vec();
        if let Some(spec) = &mut record.spec {
            spec.name.clone_from(&self.name);
        }
        record.ipv4 = self.addresses.ipv4.octets().to_vec();
        record.ipv6 = self.addresses.ipv6.octets().to_vec();
        record.mac = self.addresses.mac.0.to_vec();
        record.uid = self.uid;
        if let Some(snapshot) = &mut record.snapshot {
            snapshot.manifest_sha256.clone_from(&sealed.manifest_sha256);
            snapshot.spilled_inode = sealed.memory_inode;
        }
        record
    }

    fn write_files(
        &self,
        layout: &Layout,
        original: WorkloadId,
        manifest: &Manifest,
        state: &[u8],
    ) -> Result<Sealed> {
        let folder = layout.instance(self.id);
        let generation = manifest.generation.0;
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(layout.state_file(self.id, generation), state).context("writing a state")?;
        // No stub writes to its disk: one file serves them all.
        fs::hard_link(layout.disk(original), layout.disk(self.id)).context("linking a disk")?;
        let memory = |id| layout.instance(id).join("memory.ram");
        copy_sparse(&memory(original), &memory(self.id), self.uid)?;
        let own = Manifest {
            instance: self.id,
            state_digest: Digest(Sha256::digest(state).into()),
            ..manifest.clone()
        };
        let bytes = own.encode();
        fs::write(layout.manifest_file(self.id, generation), &bytes).context("writing a manifest")?;
        Ok(Sealed {
            manifest_sha256: Sha256::digest(&bytes).to_vec(),
            memory_inode: fs::metadata(memory(self.id))?.ino(),
        })
    }
}

/// What the record says of a copy's files.
struct Sealed {
    manifest_sha256: Vec<u8>,
    memory_inode: u64,
}

fn claim(pool: &mut AddressPool, record: &InstanceRecord) -> Result<()> {
    let addresses = Addresses {
        ipv4: <[u8; 4]>::try_from(record.ipv4.as_slice())?.into(),
        ipv6: <[u8; 16]>::try_from(record.ipv6.as_slice())?.into(),
        mac: dormouse_model::MacAddress(<[u8; 6]>::try_from(record.mac.as_slice())?),
    };
    pool.claim(addresses).context("the template's addresses")
}

/// A stub's device state bears its machine's mark: that of another is refused.
fn renamed(state: &[u8], from: &str, to: &str) -> Vec<u8> {
    let mut renamed = state.to_vec();
    let place = state
        .windows(from.len())
        .position(|window| window == from.as_bytes());
    if let Some(mark) = place.and_then(|at| renamed.get_mut(at..at + to.len())) {
        mark.copy_from_slice(to.as_bytes());
    }
    renamed
}

/// Copies the data of a file; its holes stay holes.
fn copy_sparse(from: &Path, to: &Path, uid: u32) -> Result<()> {
    let source = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let target = File::create_new(to).with_context(|| format!("making {}", to.display()))?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    std::os::unix::fs::fchown(&target, Some(uid), Some(uid))?;
    let mut at = 0_i64;
    loop {
        let start = match lseek(&source, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(()),
            Err(errno) => return Err(errno).context("looking for data"),
        };
        let end = lseek(&source, start, Whence::SeekHole).context("looking for a hole")?;
        let mut bytes = vec![0; usize::try_from(end - start)?];
        let place = u64::try_from(start)?;
        match source.read_exact_at(&mut bytes, place) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error.into()),
            Ok(()) | Err(_) => target.write_all_at(&bytes, place)?,
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("a"), scratch.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"data", 4 << 20).unwrap();
        copy_sparse(&from, &to, nix::unistd::getuid().as_raw()).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert_eq!(renamed(b"x one y", "one", "two"), b"x two y");
    }
}
