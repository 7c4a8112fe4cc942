package trust

import "fmt"

// Reason is why something was refused. The texts are stable: events and metrics show them.
type Reason string

// The reasons.
const (
	// Unsigned: there is no signature where one is needed.
	Unsigned Reason = "unsigned"
	// Malformed: the signature, or what it is over, cannot be read.
	Malformed Reason = "malformed"
	// BadSignature: the key did not sign this, here, as this.
	BadSignature Reason = "bad_signature"
	// UnknownKey: no gateway of the trust set has this key.
	UnknownKey Reason = "unknown_key"
	// Revoked: the key was taken out of the trust set.
	Revoked Reason = "revoked"
	// OutOfTime: the key was not yet, or no longer, valid at the moment of the stamp; or that moment is still to come.
	OutOfTime Reason = "out_of_time"
	// WrongGateway: the key is another gateway's than the one that must have written this.
	WrongGateway Reason = "wrong_gateway"
	// WrongMesh: it was signed for another mesh.
	WrongMesh Reason = "wrong_mesh"
	// WrongLane: it was signed for another place.
	WrongLane Reason = "wrong_lane"
	// Replay: it is true, and was said and taken before.
	Replay Reason = "replay"
	// Downgrade: it claims less than what its writer can be shown to have said, as an older version.
	Downgrade Reason = "downgrade"
	// Gap: something that was said is not there.
	Gap Reason = "gap"
	// NotHost: the trust set does not let the gateway speak for this agent.
	NotHost Reason = "not_host"
	// NoTrustSet: signatures are enforced, and no trust set is known yet.
	NoTrustSet Reason = "no_trust_set"
	// WrongOperator: no operator of the set before signed this one.
	WrongOperator Reason = "wrong_operator"
	// Unreadable: an encrypted payload does not decrypt, though it names a key of this gateway.
	Unreadable Reason = "unreadable"
	// Rollback: an older trust set than the newest that was seen, or another one of the same version.
	Rollback Reason = "rollback"
)

// A Refusal says that something is not to be believed, and whose it is as far as that is known.
type Refusal struct {
	Reason  Reason
	Gateway string // who it says it is from
	Key     string // the id of the key that it names
	Detail  string
}

func (r *Refusal) Error() string {
	s := string(r.Reason) + ": " + r.Detail
	if r.Key != "" {
		s += " (key " + r.Key + ")"
	}
	return s
}

func refuse(r Reason, gateway, key, format string, args ...any) *Refusal {
	return &Refusal{r, gateway, key, fmt.Sprintf(format, args...)}
}
