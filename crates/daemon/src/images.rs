//! Images joined with the store, and with the instances that use them.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_image::{
    ContentStore, Digest, ImageError, ImageIndex, ImageName, ImageRecord, ImportOptions, IndexError, Limits,
    Progress,
};
use dormouse_instance::rooms::{GuestCommand, Images};
use dormouse_model::{InstanceSpec, WallTime};
use dormouse_store::{Batch, Key, Record, RecordKind, Store};

/// An image's record as the store keeps it: the image room owns the body.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageBody {
    /// What the image room encoded.
    #[prost(bytes = "vec", tag = "1")]
    pub body: Vec<u8>,
}

impl Record for ImageBody {
    const KIND: RecordKind = RecordKind::Image;
    const VERSION: u8 = 1;
}

/// The index on the store. Its calls block: they are made from the blocking pool only.
#[derive(Debug)]
struct StoreIndex {
    store: Store,
    runtime: tokio::runtime::Handle,
}

fn key(name: &ImageName) -> Key {
    Key::from(name.to_string().as_str())
}

impl StoreIndex {
    /// `batch` with the record in it.
    fn put_in(batch: Batch, record: &ImageRecord) -> Batch {
        let body = ImageBody {
            body: record.encode(),
        };
        batch.put(key(&record.name), &body)
    }

    fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        Ok(self.runtime.block_on(self.store.apply(batch))?)
    }
}

impl ImageIndex for StoreIndex {
    fn put(&self, record: &ImageRecord) -> Result<(), IndexError> {
        self.apply(Self::put_in(Batch::new(), record))
    }

    fn get(&self, name: &ImageName) -> Result<Option<ImageRecord>, IndexError> {
        let found = self.runtime.block_on(self.store.get::<ImageBody>(key(name)))?;
        Ok(found.map(|found| ImageRecord::decode(&found.body)).transpose()?)
    }

    fn list(&self) -> Result<Vec<ImageRecord>, IndexError> {
        let listing = self.runtime.block_on(self.store.list::<ImageBody>())?;
        let mut records = Vec::with_capacity(listing.records.len());
        for (_, found) in listing.records {
            records.push(ImageRecord::decode(&found.body)?);
        }
        Ok(records)
    }

    fn is_whole(&self) -> Result<bool, IndexError> {
        let listing = self.runtime.block_on(self.store.list::<ImageBody>())?;
        Ok(listing.damaged.is_empty())
    }

    fn remove(&self, name: &ImageName) -> Result<(), IndexError> {
        self.apply(Batch::new().delete::<ImageBody>(key(name)))
    }
}

/// The images of this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageRoom {
    content: Arc<ContentStore>,
    index: Arc<StoreIndex>,
    /// Configurations by digest, read at start and at every import: instances need them where nothing
    /// may block.
    known: Arc<Mutex<HashMap<String, Arc<ImageRecord>>>>,
}

impl ImageRoom {
    /// Opens the images below `data`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn open(data: &Path, store: Store, limits: Limits) -> Result<Self, ImageError> {
        let index = Arc::new(StoreIndex {
            store,
            runtime: tokio::runtime::Handle::current(),
        });
        let opened = Arc::clone(&index);
        let folder = data.to_owned();
        let content = blocking(move || ContentStore::open(&folder, opened, limits)).await?;
        let room = Self {
            content: Arc::new(content),
            index,
            known: Arc::default(),
        };
        for record in room.list().await? {
            room.remember(record);
        }
        Ok(room)
    }

    fn remember(&self, record: ImageRecord) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(record.digest.to_string(), Arc::new(record));
    }

    fn recall(&self, digest: &str) -> Option<Arc<ImageRecord>> {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(digest)
            .cloned()
    }

    /// Imports an archive or a layout directory; `progress` is called from the importing thread, and the
    /// changes of `along` become durable with the record.
    ///
    /// # Errors
    /// When it is not an image or cannot be stored; nothing is left then.
    pub async fn import(
        &self,
        path: PathBuf,
        name: Option<ImageName>,
        now: WallTime,
        mut progress: impl FnMut(Progress) -> ControlFlow<()> + Send + 'static,
        along: impl Fn(&ImageRecord) -> Batch + Send + 'static,
    ) -> Result<ImageRecord, ImageError> {
        let content = Arc::clone(&self.content);
        let index = Arc::clone(&self.index);
        let options = ImportOptions { name, choose: None };
        let record = blocking(move || {
            let commit = |record: &ImageRecord| index.apply(StoreIndex::put_in(along(record), record));
            content.import_by(&path, &options, now, &mut progress, &commit)
        })
        .await?;
        self.remember(record.clone());
        Ok(record)
    }

    /// All images, by name.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let content = Arc::clone(&self.content);
        blocking(move || content.list()).await
    }

    /// The image that a name, a digest, or a unique beginning of a digest means.
    ///
    /// # Errors
    /// When there is none, or several begin so.
    pub async fn find(&self, reference: String) -> Result<ImageRecord, ImageError> {
        let content = Arc::clone(&self.content);
        blocking(move || content.get(&reference)).await
    }

    /// Removes a name, and the image with its last one. `free` is asked under the lock that imports and
    /// lookups take, right before: whether no instance uses the content, or an error that forbids the
    /// removal. The changes of `along`, which is told whether the content goes too, become durable with it.
    ///
    /// # Errors
    /// When there is none, an instance uses it, or `free` forbids it.
    pub async fn remove(
        &self,
        reference: String,
        free: impl Fn(&ImageRecord) -> Result<bool, ImageError> + Send + 'static,
        along: impl Fn(&ImageRecord, bool) -> Batch + Send + 'static,
    ) -> Result<(ImageRecord, bool), ImageError> {
        let (content, index) = (Arc::clone(&self.content), Arc::clone(&self.index));
        let (record, gone) = blocking(move || {
            let commit = |record: &ImageRecord, gone: bool| {
                index.apply(along(record, gone).delete::<ImageBody>(key(&record.name)))
            };
            content.remove_by(&reference, &free, &commit)
        })
        .await?;
        if gone {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.remove(&record.digest.to_string());
        }
        Ok((record, gone))
    }
}

/// Runs image work on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ImageError::Cancelled),
    }
}

#[tonic::async_trait]
impl Images for ImageRoom {
    async fn digest_of(&self, reference: &str) -> Result<String, ImageError> {
        self.find(reference.to_owned())
            .await
            .map(|record| record.digest.to_string())
    }

    fn root_file_system(&self, digest: &str) -> PathBuf {
        digest
            .parse::<Digest>()
            .map(|digest| self.content.rootfs_path(&digest))
            .unwrap_or_default()
    }

    fn command_of(&self, digest: &str, spec: &InstanceSpec) -> GuestCommand {
        let Some(record) = self.recall(digest) else {
            return GuestCommand::default();
        };
        let config = &record.config;
        GuestCommand {
            arguments: config.arguments(&spec.entrypoint, &spec.command),
            environment: config.environment_with(&spec.environment),
            working_directory: spec
                .working_directory
                .clone()
                .unwrap_or_else(|| config.working_directory.clone()),
            user: spec.user.clone().unwrap_or_else(|| config.user.clone()),
            stop_signal: config.stop_signal,
        }
    }
}
