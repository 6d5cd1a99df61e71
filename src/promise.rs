//! What an embedder promises about its vectors, kept in the bank: whoever looks at the vectors later need not have the model.

use crate::embed::EmbedderIdentity;
use crate::error::Result;
use crate::id::EmbedderId;
use crate::store::Store;

/// What the keys in `meta` begin with; the embedder follows.
const KEY: &str = "embedder/";

/// Leaves the identity in the bank, unless it stands there.
pub(crate) async fn record(store: &Store, embedder: &EmbedderId, identity: &EmbedderIdentity) -> Result<()> {
    let (key, value) = (format!("{KEY}{embedder}"), serde_json::json!(identity).to_string());
    if store.meta.get(&key).await?.as_deref() == Some(value.as_str()) {
        return Ok(());
    }
    store.meta.put(&key, &value, store.clock().now()).await
}

/// The embedder whose identity stands under a key of `meta`; `None` for another key.
pub(crate) fn owner(key: &str) -> Option<EmbedderId> {
    key.strip_prefix(KEY).map(EmbedderId::from_stored)
}

/// Reads what was left; `None` if it is no identity, or that of another embedder.
pub(crate) fn read(embedder: &EmbedderId, value: &str) -> Option<EmbedderIdentity> {
    let identity: EmbedderIdentity = serde_json::from_str(value).ok()?;
    (identity.id() == *embedder).then_some(identity)
}
