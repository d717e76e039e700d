//! The platform's TCB status, as `dcap-qvl` finds it, against the policy.

use casemate_foreign::Foreign;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteClaims, QuotePolicy};

use super::policy::{TcbStatus, TdxPolicy};
use crate::time::Timestamp;

use super::collateral::Collateral;

/// What `dcap-qvl` found.
pub(crate) struct Platform {
    pub(crate) status: TcbStatus,
    pub(crate) advisories: Vec<String>,
    pub(crate) evaluation: u32,
    /// The oldest date of a TCB level that makes the platform out of date.
    outdated_since: Option<Timestamp>,
}

/// Verifies a quote with its collateral: every signature, every date, the enclave's identity, the
/// TCB level. Debugging is allowed here, for it is a check of its own.
pub(crate) fn judge(
    quote: &[u8],
    collateral: &Collateral,
    at: Timestamp,
) -> Result<Platform, String> {
    QuoteVerifier::new_prod()
        .allow_debug(true)
        .verify_with_policy(quote, &collateral.raw, at.0, &QuotePolicy::claims_only(at.0))
        .map(|claims| Platform::of(&claims))
        .map_err(|error| format!("{error:#}"))
}

impl Platform {
    fn of(claims: &QuoteClaims) -> Self {
        let platform = &claims.platform;
        let outdated = [Some(&platform.tcb_level), platform.current_tcb_level.as_ref()]
            .into_iter()
            .flatten()
            .map(|level| (level.tcb_status, &level.tcb_date))
            .chain([(claims.qe.tcb_level.tcb_status, &claims.qe.tcb_level.tcb_date)])
            .filter(|(status, _)| out_of_date(own(*status)))
            // A date that cannot be read is the oldest there is.
            .map(|(_, date)| Timestamp::parse(date).unwrap_or(Timestamp(0)))
            .min();
        Platform {
            status: own(claims.tcb.status),
            advisories: (claims.tcb.advisory_ids.iter())
                .map(|advisory| Foreign(advisory).to_string())
                .collect(),
            evaluation: claims.tcb.eval_data_number,
            outdated_since: outdated,
        }
    }

    /// That the evaluation has at least this number.
    pub(crate) fn check_evaluation(&self, least: u32) -> Result<String, String> {
        let found = self.evaluation;
        if found >= least {
            Ok(format!("evaluation {found}"))
        } else {
            Err(format!("evaluation {found} is older than the policy's {least}"))
        }
    }

    /// Judges the status. With a grace period, "out of date" is accepted for that long after the
    /// date of the TCB level, if what the platform is apart from that is listed.
    pub(crate) fn check(&self, policy: &TdxPolicy, at: Timestamp) -> Result<String, String> {
        let status = self.status;
        let listed =
            |status| policy.tcb_statuses.as_ref().is_none_or(|list| list.contains(&status));
        let acceptable = match (policy.grace_period_seconds, status) {
            (Some(grace), TcbStatus::OutOfDate | TcbStatus::OutOfDateConfigurationNeeded) => {
                let end = self.outdated_since.map_or(0, |since| since.0.saturating_add(grace));
                if at.0 > end {
                    return Err(format!(
                        "{status}, and the grace period ended at {}",
                        Timestamp(end)
                    ));
                }
                let apart_from_that = if status == TcbStatus::OutOfDate {
                    TcbStatus::UpToDate
                } else {
                    TcbStatus::ConfigurationNeeded
                };
                listed(status) || listed(apart_from_that)
            }
            _ => listed(status),
        };
        match (acceptable, &policy.tcb_statuses) {
            (true, _) => Ok(status.to_string()),
            (false, Some(list)) => Err(format!("{status} is not one of the policy's {list:?}")),
            (false, None) => Err(format!("{status} is not accepted")),
        }
    }
}

fn out_of_date(status: TcbStatus) -> bool {
    matches!(status, TcbStatus::OutOfDate | TcbStatus::OutOfDateConfigurationNeeded)
}

fn own(status: dcap_qvl::TcbStatus) -> TcbStatus {
    use dcap_qvl::TcbStatus as Theirs;
    match status {
        Theirs::UpToDate => TcbStatus::UpToDate,
        Theirs::SWHardeningNeeded => TcbStatus::SWHardeningNeeded,
        Theirs::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
        Theirs::ConfigurationAndSWHardeningNeeded => TcbStatus::ConfigurationAndSWHardeningNeeded,
        Theirs::OutOfDate => TcbStatus::OutOfDate,
        Theirs::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
        Theirs::TDRelaunchAdvised => TcbStatus::TDRelaunchAdvised,
        Theirs::TDRelaunchAdvisedConfigurationNeeded => {
            TcbStatus::TDRelaunchAdvisedConfigurationNeeded
        }
        Theirs::Revoked => TcbStatus::Revoked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: TcbStatus, json: &str, at: u64) -> bool {
        let platform = Platform {
            status,
            advisories: Vec::new(),
            evaluation: 17,
            outdated_since: Some(Timestamp(1000)),
        };
        let policy = TdxPolicy::from_json(json.as_bytes()).unwrap();
        platform.check(&policy, Timestamp(at)).is_ok()
    }

    #[test]
    fn the_grace_period_ends_with_its_last_second() {
        let policy = r#"{"tcb_statuses": ["UpToDate"], "grace_period_seconds": 500}"#;
        assert!(check(TcbStatus::OutOfDate, policy, 1500));
        assert!(!check(TcbStatus::OutOfDate, policy, 1501));
        assert!(check(TcbStatus::UpToDate, policy, 9999));
        let listed = r#"{"tcb_statuses": ["OutOfDate"], "grace_period_seconds": 500}"#;
        assert!(check(TcbStatus::OutOfDate, listed, 1500));
        assert!(!check(TcbStatus::OutOfDate, listed, 1501));
    }

    #[test]
    fn the_grace_period_forgives_nothing_but_age() {
        let policy = r#"{"tcb_statuses": ["UpToDate"], "grace_period_seconds": 500}"#;
        assert!(!check(TcbStatus::OutOfDateConfigurationNeeded, policy, 1500));
        assert!(!check(TcbStatus::SWHardeningNeeded, policy, 1500));
        let nothing = r#"{"tcb_statuses": [], "grace_period_seconds": 500}"#;
        assert!(!check(TcbStatus::OutOfDate, nothing, 1500));
        assert!(!check(TcbStatus::UpToDate, nothing, 1500));
    }

    #[test]
    fn without_a_list_any_status_will_do() {
        assert!(check(TcbStatus::OutOfDate, "{}", 9999));
        assert!(!check(TcbStatus::OutOfDate, r#"{"tcb_statuses": ["UpToDate"]}"#, 1000));
    }
}
