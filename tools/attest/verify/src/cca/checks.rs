//! The checks of tokens of Arm CCA.

use crate::names::check_names;

check_names! {
    COLLECTION_TAG "collection-tag" "The token is a CCA collection (tag 399) of a platform and a realm token.",
    PLATFORM_SIGNATURE [Platform] "platform-signature" "The platform's key, which the caller names, signed the platform token.",
    LIFECYCLE [Platform] "lifecycle" "The platform is in the secured state.",
    RAK_BINDING [Platform] "rak-binding" "The platform token's challenge is the hash of the realm's attestation key.",
    REALM_SIGNATURE [Platform] "realm-signature" "The realm's attestation key signed the realm token.",
    IMPLEMENTATION "implementation" "The platform's implementation is one that the policy names.",
    RIM [Firmware] "rim" "The realm's initial measurement is one that the policy names.",
    REM [System] "rem" "The realm's extensible measurements are those that the policy names.",
    PERSONALIZATION "personalization" "The realm's personalization value is one that the policy names.",
}
