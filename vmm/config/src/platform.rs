//! The platform that a guest is to have.

use std::fmt;
use std::str::FromStr;

use casemate_launch::PlatformKind;
use serde::{Deserialize, Deserializer, de};

use crate::error::FlagError;
use crate::keys::Value;

/// Platform of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlatformChoice {
    /// SEV-SNP, otherwise TDX; never plain KVM.
    #[default]
    Auto,
    /// This one.
    Only(PlatformKind),
}

impl PlatformChoice {
    const AUTO: &str = "auto";

    /// Whether the guest may get this platform.
    #[must_use]
    pub fn allows(self, platform: PlatformKind) -> bool {
        self.platforms().contains(&platform)
    }

    /// The platforms in the order in which they are tried.
    #[must_use]
    pub fn platforms(self) -> &'static [PlatformKind] {
        match self {
            Self::Auto => &[PlatformKind::Snp, PlatformKind::Tdx],
            Self::Only(PlatformKind::Snp) => &[PlatformKind::Snp],
            Self::Only(PlatformKind::Tdx) => &[PlatformKind::Tdx],
            Self::Only(PlatformKind::Plain) => &[PlatformKind::Plain],
        }
    }
}

impl fmt::Display for PlatformChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => Self::AUTO,
            Self::Only(platform) => platform.word(),
        })
    }
}

impl FromStr for PlatformChoice {
    type Err = FlagError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        if word == Self::AUTO {
            return Ok(Self::Auto);
        }
        word.parse().map(Self::Only).map_err(|_| {
            let words: Vec<_> = Self::CHOICES.iter().map(|(word, _)| *word).collect();
            FlagError::word(word, &words)
        })
    }
}

impl<'de> Deserialize<'de> for PlatformChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Value for PlatformChoice {
    const NAME: &'static str = "WORD";
    const CHOICES: &'static [(&'static str, &'static str)] = &[
        (Self::AUTO, "SEV-SNP, otherwise TDX; never plain KVM."),
        (PlatformKind::Snp.word(), "AMD SEV-SNP."),
        (PlatformKind::Tdx.word(), "Intel TDX."),
        (PlatformKind::Plain.word(), "KVM without memory encryption."),
    ];

    fn shape() -> String {
        Self::CHOICES.iter().map(|(word, _)| format!("`{word:?}`")).collect::<Vec<_>>().join(", ")
    }

    fn shown(&self) -> Option<String> {
        Some(format!("{:?}", self.to_string()))
    }

    fn parse(text: &str) -> Result<Self, FlagError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_platforms_and_auto() {
        for (word, _) in PlatformChoice::CHOICES {
            assert_eq!(
                word.parse::<PlatformChoice>().map(|choice| choice.to_string()),
                Ok((*word).into())
            );
        }
        assert_eq!(PlatformChoice::CHOICES.len(), PlatformKind::ALL.len() + 1);
        let refused = "sev".parse::<PlatformChoice>().unwrap_err();
        assert_eq!(refused.to_string(), "\"sev\" is not one of auto, snp, tdx, plain");
    }
}
