//! What a verification returns, and the ledger in which it is written.

use std::borrow::Cow;

use casemate_foreign::one_line;
use serde::Serialize;

use crate::names::CheckName;
use crate::policy::PolicyError;
use crate::snp::SnpClaims;
use crate::tdx::TdxClaims;

/// The end of a verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every check was done and passed.
    Accept,
    /// A check failed, or could not be done.
    Reject,
    /// The quote is genuine, but there is nothing to judge its platform by. Not to be relied on.
    NoCollateral,
}

/// What became of one check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done, and what it asks for holds.
    Passed,
    /// Done, and what it asks for does not hold.
    Failed,
    /// Not done; the detail says why.
    NotDone,
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// Which.
    pub name: CheckName,
    /// What became of it.
    pub result: Outcome,
    /// The values that were compared, or why it was not done.
    pub detail: String,
}

/// What the evidence says about itself. Only to be believed with [`Verdict::Accept`].
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(untagged)]
pub enum Claims {
    /// Of an SEV-SNP report.
    Snp(Box<SnpClaims>),
    /// Of a TDX quote.
    Tdx(Box<TdxClaims>),
    /// The evidence could not be read.
    None {},
}

/// A verification's result. Serializes as `{"verdict", "checks", "claims"}`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Judgement {
    /// The end of it.
    pub verdict: Verdict,
    /// Every check, in the order of [`CheckName`].
    pub checks: Vec<Check>,
    /// What the evidence says.
    pub claims: Claims,
    /// Checks that were not asked for: the policy sets no condition for them.
    #[serde(skip)]
    pub unset: Vec<CheckName>,
    /// Which inputs are not what they should be at all (a truncated report, a certificate that does
    /// not parse). The verdict is then [`Verdict::Reject`]; a program reports bad input.
    #[serde(skip)]
    pub malformed: Vec<String>,
}

impl Judgement {
    /// The judgement when the policy cannot be understood: nothing is looked at.
    #[must_use]
    pub fn policy_invalid(error: &PolicyError) -> Self {
        let mut ledger = Ledger::new(&[]);
        let source = std::error::Error::source(error).map(|source| format!(": {source}"));
        let detail = format!("{error}{}", source.unwrap_or_default());
        ledger.malformed(CheckName::PolicyInvalid, detail);
        ledger.close(Claims::None {}, "the policy could not be read")
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = CheckName> + '_ {
        self.checks.iter().filter(|check| check.result == Outcome::Failed).map(|check| check.name)
    }
}

/// Collects checks. What was announced and never recorded ends as "not done", so that forgetting
/// a check can never accept.
pub(crate) struct Ledger {
    announced: Vec<CheckName>,
    checks: Vec<Check>,
    unset: Vec<CheckName>,
    malformed: Vec<String>,
}

impl Ledger {
    pub(crate) fn new(announced: &[CheckName]) -> Self {
        Ledger {
            announced: announced.to_vec(),
            checks: Vec::new(),
            unset: Vec::new(),
            malformed: Vec::new(),
        }
    }

    /// Records a check; `Err` is why it failed. Of several records of one check the failures count.
    pub(crate) fn record(&mut self, name: CheckName, finding: Result<String, String>) {
        let (result, detail) = match finding {
            Ok(detail) => (Outcome::Passed, detail),
            Err(detail) => (Outcome::Failed, detail),
        };
        self.write(Check { name, result, detail });
    }

    /// Records that a check could not be done.
    pub(crate) fn not_done(&mut self, name: CheckName, why: &str) {
        self.write(Check { name, result: Outcome::NotDone, detail: why.to_owned() });
    }

    /// Records a check for which the policy sets no condition when `condition` is `None`.
    pub(crate) fn condition<T>(
        &mut self,
        name: CheckName,
        condition: Option<T>,
        check: impl FnOnce(T) -> Result<String, String>,
    ) {
        match condition {
            None => self.unset(name),
            Some(condition) => self.record(name, check(condition)),
        }
    }

    /// Records that nobody asked for a check.
    pub(crate) fn unset(&mut self, name: CheckName) {
        self.unset.push(name);
    }

    /// Records a failed check whose cause is that an input is not what it should be.
    pub(crate) fn malformed(&mut self, name: CheckName, detail: String) {
        self.malformed.push(one_line(&detail).into_owned());
        self.record(name, Err(detail));
    }

    /// Details have foreign text in them, which errors of parsers repeat: no character of it acts on a
    /// terminal or ends a line.
    fn write(&mut self, mut check: Check) {
        if let Cow::Owned(printable) = one_line(&check.detail) {
            check.detail = printable;
        }
        match self.checks.iter_mut().find(|earlier| earlier.name == check.name) {
            None => self.checks.push(check),
            Some(earlier) => merge(earlier, check),
        }
    }

    /// Whether every one of `names` was done and passed.
    pub(crate) fn all_passed(&self, names: &[CheckName]) -> bool {
        names.iter().all(|name| {
            self.checks.iter().any(|check| check.name == *name && check.result == Outcome::Passed)
        })
    }

    /// Closes the ledger. `why_not_done` explains the checks that were announced but not recorded.
    pub(crate) fn close(mut self, claims: Claims, why_not_done: &str) -> Judgement {
        for name in std::mem::take(&mut self.announced) {
            let known =
                self.unset.contains(&name) || self.checks.iter().any(|check| check.name == name);
            if !known {
                self.not_done(name, why_not_done);
            }
        }
        self.checks.sort_by_key(|check| check.name);
        self.unset.sort();
        let accepted = !self.checks.is_empty()
            && self.checks.iter().all(|check| check.result == Outcome::Passed);
        Judgement {
            verdict: if accepted { Verdict::Accept } else { Verdict::Reject },
            checks: self.checks,
            claims,
            unset: self.unset,
            malformed: self.malformed,
        }
    }
}

/// Several findings under one name: a failure outweighs all, "not done" outweighs "passed".
fn merge(earlier: &mut Check, later: Check) {
    fn weight(outcome: Outcome) -> u8 {
        match outcome {
            Outcome::Passed => 0,
            Outcome::NotDone => 1,
            Outcome::Failed => 2,
        }
    }
    match weight(later.result).cmp(&weight(earlier.result)) {
        std::cmp::Ordering::Greater => *earlier = later,
        std::cmp::Ordering::Equal => {
            earlier.detail.push_str("; ");
            earlier.detail.push_str(&later.detail);
        }
        std::cmp::Ordering::Less => {}
    }
}
