package detect

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"vmscope/mem"
)

// Severity is how bad a finding would be if it is what it looks like.
type Severity string

// The severities.
const (
	High   Severity = "high"   // somebody's code runs in the kernel, or something is hidden
	Medium Severity = "medium" // a way that attackers use, and few others
	Low    Severity = "low"    // unusual
	Info   Severity = "info"   // inventory: good to know, no alarm
)

// Confidence is how sure a finding is.
type Confidence string

// The confidences.
const (
	Proved   Confidence = "proved"   // by what the CPU itself obeys, or by two lists that contradict each other
	Likely   Confidence = "likely"   // known guests have it only when tampered with
	Possible Confidence = "possible" // there are harmless reasons
)

// Finding is one thing that is not as it should be.
type Finding struct {
	// ID is the same for the same finding in every look at a guest, also after a
	// reboot of it: it is made from the check and from what the finding is about.
	ID         string     `json:"id"`
	Check      string     `json:"check"`
	Severity   Severity   `json:"severity"`
	Confidence Confidence `json:"confidence"`
	Summary    string     `json:"summary"`
	Evidence   []Evidence `json:"evidence"`

	// slow says that it may be of something that the kernel is just changing, and
	// takes its time for; see outlasts.
	slow bool
}

// Evidence is one place in the guest's memory that a finding rests on, for an
// engineer to look at. Texts may hold bytes that the guest chose.
type Evidence struct {
	What   string `json:"what"`             // what is there
	Addr   mem.VA `json:"addr,omitempty"`   // where
	Symbol string `json:"symbol,omitempty"` // what Addr is nearest to, as "name+0x10" or "name [module]"
	Owner  string `json:"owner,omitempty"`  // whose code or data it is
	// Expected and Found are bytes in hexadecimal, or a value in words.
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`

	differ *difference // what Expected and Found show, where bytes were compared
	pid    int         // of the process in whose memory Addr is, if it is not the kernel's
}

// difference is bytes that are not what they were.
type difference struct {
	at       mem.VA
	was, now []byte // of the same length
}

// differ makes a difference; the shorter of the two decides how much is told.
func differ(at mem.VA, was, now []byte) *difference {
	n := min(len(was), len(now))
	return &difference{at, bytes.Clone(was[:n]), bytes.Clone(now[:n])}
}

// identify gives the finding its ID: about names what it is about in words that
// stay the same, such as symbols rather than addresses. The guest chooses some
// of them: the ID is long enough that it cannot choose an ID.
func (f *Finding) identify(about ...string) {
	sum := sha256.Sum256([]byte(f.Check + "\x00" + strings.Join(about, "\x00")))
	f.ID = f.Check + "-" + hex.EncodeToString(sum[:8])
}

// Contradiction reports whether the finding is that the guest's structures do
// not hold together.
func (f Finding) Contradiction() bool {
	c := Finding{Check: f.Check}
	c.identify("contradiction")
	return c.ID == f.ID
}

// same reports whether two findings of one sweep are about the same thing: of one
// ID, or at the same place. Names are the guest's to change between two looks.
func (f Finding) same(g Finding) bool {
	return f.ID == g.ID || f.Check == g.Check && len(f.Evidence) > 0 && len(g.Evidence) > 0 && f.Evidence[0].Addr != 0 && f.Evidence[0].Addr == g.Evidence[0].Addr
}

// key tells findings apart: of one ID, one that is worse is another.
func (f Finding) key() string { return f.ID + " " + string(f.Severity) }
