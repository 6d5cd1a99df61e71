//! An API key that cannot be shown: it has no `Display`, its `Debug` is a constant, and its text leaves this module only into
//! the header of a request.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};

/// What stands where a key would.
const HIDDEN: &str = "[hidden key]";

/// A secret that a provider knows the caller by.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes a key; white space around it, such as a line end, is not part of it.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if it is empty or cannot stand in an HTTP header. The message does not show it.
    pub fn new(key: &str) -> Result<Self> {
        Self::named(key, "the key")
    }

    /// Reads the key from an environment variable.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if it is not set, or holds no key.
    pub fn from_env(variable: &str) -> Result<Self> {
        let key = std::env::var(variable)
            .map_err(|_| invalid(format!("the environment variable {variable} is not set, or is not text")))?;
        Self::named(&key, &format!("the environment variable {variable}"))
    }

    /// Reads the key from a file that holds nothing else.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidSetting`] if the file holds no key.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let key = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::named(&key, &format!("the file {}", path.display()))
    }

    fn named(key: &str, origin: &str) -> Result<Self> {
        let key = key.trim();
        if key.is_empty() {
            return Err(invalid(format!("{origin} is empty")));
        }
        // RFC 9110, 5.5: what else a header may hold would end it or be read differently by different servers.
        if !key.chars().all(|c| c.is_ascii_graphic()) {
            return Err(invalid(format!(
                "{origin} holds more than a key: only printable ASCII without spaces will do"
            )));
        }
        Ok(Self(key.to_owned()))
    }

    /// The value of the `Authorization` header.
    pub(super) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// `text` without the key, should a server have repeated it.
    pub(super) fn hide_in(&self, text: &str) -> String {
        text.replace(&self.0, HIDDEN)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

fn invalid(reason: String) -> Error {
    Error::InvalidSetting { setting: "key", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_in_no_form() {
        let key = ApiKey::new("sk-secret\n").unwrap();
        assert_eq!(format!("{key:?} {:?}", Some(&key)), "[hidden key] Some([hidden key])");
        assert_eq!(key.hide_in("bad key sk-secret!"), "bad key [hidden key]!");
        assert_eq!(key.authorization(), "Bearer sk-secret");
    }

    #[test]
    fn what_cannot_be_a_key_is_refused_without_being_shown() {
        for bad in ["", " \n", "sk-secret\nX-Other: 1", "sk secret", "sk-sécret"] {
            let error = ApiKey::new(bad).unwrap_err().to_string();
            assert!(error.starts_with("key: ") && !error.contains("secret") && !error.contains("sécret"), "{error}");
        }
    }

    #[test]
    fn a_file_holds_the_key_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sk-from-file\n").unwrap();
        assert_eq!(ApiKey::from_file(&path).unwrap(), ApiKey::new("sk-from-file").unwrap());
        assert!(matches!(ApiKey::from_file(dir.path().join("none")), Err(Error::Io { .. })));
        let unset = ApiKey::from_env("EMBANK_TEST_NO_SUCH_KEY").unwrap_err().to_string();
        assert!(unset.contains("EMBANK_TEST_NO_SUCH_KEY is not set"), "{unset}");
    }
}
