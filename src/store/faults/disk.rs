//! The object store through which Lance writes where a bank has faults: each put, delete, copy, rename and completed upload
//! asks the plan first. Reads pass.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance::io::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, UploadPart,
};

use super::{Plan, Verdict, on_purpose};

/// Puts the plan between Lance and the disk.
#[derive(Debug)]
pub(super) struct Wrapper {
    plan: Arc<Plan>,
    /// The bank's directory, which the names of changes leave out.
    root: Arc<str>,
}

impl Wrapper {
    pub(super) fn new(plan: Arc<Plan>, root: &str) -> Self {
        Self { plan, root: root.trim_start_matches('/').into() }
    }
}

impl WrappingObjectStore for Wrapper {
    fn wrap(&self, _prefix: &str, original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(FaultyStore { disk: Disk { plan: self.plan.clone(), root: self.root.clone() }, original })
    }

    fn wrap_paginated(
        &self,
        _prefix: &str,
        original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        Some(original)
    }
}

/// The object store that Lance sees.
#[derive(Debug)]
struct FaultyStore {
    disk: Disk,
    original: Arc<dyn ObjectStore>,
}

#[derive(Clone, Debug)]
struct Disk {
    plan: Arc<Plan>,
    root: Arc<str>,
}

type StoreResult<T> = object_store::Result<T>;

impl Disk {
    /// Makes a change, unless it is the one that fails.
    async fn change<T>(
        &self,
        kind: &str,
        location: &Path,
        tear: impl FnOnce(),
        change: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let _one = self.plan.one_at_a_time.lock().await;
        let path = location.as_ref();
        let path = path.strip_prefix(&*self.root).map_or(path, |below| below.trim_start_matches('/'));
        match self.plan.judge(format!("{kind} {path}"), tear) {
            Verdict::Made => change.await,
            Verdict::Refused | Verdict::Torn => Err(fault()),
        }
    }
}

/// Writes half of a file as far as it gets before it is renamed: under the name that waits for the rename.
fn tear(location: &Path, payload: &PutPayload, mode: &PutMode) {
    let path = std::path::PathBuf::from(format!("/{location}"));
    // The names that the two writers use that the store has without faults: one for what must not be there yet, which are
    // the manifests, and one for everything else.
    let staged = match mode {
        PutMode::Overwrite => path.with_file_name(".tmpTORN01"),
        PutMode::Create | PutMode::Update(_) => format!("{}#1", path.display()).into(),
    };
    let bytes: Vec<u8> = payload.iter().flat_map(|part| part.iter().copied()).collect();
    let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
    let folder = staged.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(error) = folder.and_then(|()| std::fs::write(&staged, half)) {
        tracing::warn!(%error, path = %staged.display(), "half a file could not be written");
    }
}

fn fault() -> object_store::Error {
    object_store::Error::Generic { store: "faults", source: Box::new(on_purpose()) }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.original)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        let (half, mode) = (payload.clone(), options.mode.clone());
        let put = self.original.put_opts(location, payload, options);
        self.disk.change("put", location, || tear(location, &half, &mode), put).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        if self.disk.plan.is_dead() {
            return Err(fault());
        }
        let upload = self.original.put_multipart_opts(location, options).await?;
        Ok(Box::new(FaultyUpload { disk: self.disk.clone(), location: location.clone(), upload }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.original.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        let (disk, original) = (self.disk.clone(), self.original.clone());
        let deleted = locations.and_then(move |location| {
            let (disk, original) = (disk.clone(), original.clone());
            async move {
                let one = futures::stream::once(futures::future::ready(Ok(location.clone()))).boxed();
                let delete = async { original.delete_stream(one).try_for_each(|_| async { Ok(()) }).await };
                disk.change("delete", &location, || {}, delete).await?;
                Ok(location)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.original.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.original.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.original.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.disk.change("copy", to, || {}, self.original.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> StoreResult<()> {
        self.disk.change("rename", to, || {}, self.original.rename_opts(from, to, options)).await
    }
}

/// A large file on its way; it is there once it is complete.
#[derive(Debug)]
struct FaultyUpload {
    disk: Disk,
    location: Path,
    upload: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        if self.disk.plan.is_dead() {
            return Box::pin(futures::future::ready(Err(fault())));
        }
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        self.disk.change("complete", &self.location, || {}, self.upload.complete()).await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        if self.disk.plan.is_dead() {
            return Err(fault());
        }
        self.upload.abort().await
    }
}
