//! The checks of Azure's paravisor report.

use crate::names::check_names;

check_names! {
    HCL_LENGTH "hcl-length" "The paravisor's report is complete, and its two sizes agree.",
    HCL_SIGNATURE "hcl-signature" "The paravisor's report begins with HCLA.",
    HCL_HEADER "hcl-header" "Versions, request, status, and the types of report and hash are known ones.",
    RUNTIME_DATA_JSON "runtime-data-json" "The runtime data is one JSON object with exactly one RSA attestation key of at least 2048 bits.",
    RUNTIME_DATA_BINDING [Platform] "runtime-data-binding" "REPORT_DATA is the hash of the runtime data, followed by zeros.",
    USER_DATA [Fresh] "user-data" "The guest had the paravisor put the expected data into the report.",
    SECURE_BOOT "secure-boot" "The paravisor reports that secure boot is on.",
    TD_QUOTE_MISSING [Platform] "td-quote-missing" "A quote is there for the TD report, which proves nothing without one.",
    TD_QUOTE_REPORT_DATA [Platform] "td-quote-report-data" "The quote has the REPORTDATA of the TD report.",
    TD_QUOTE_MEASUREMENT [Platform] "td-quote-measurement" "The quote has the MRTD of the TD report.",
}
