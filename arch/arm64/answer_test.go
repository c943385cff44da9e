package arm64_test

import (
	"errors"
	"fmt"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
)

// answer is what the processor came to for an address.
type answer struct {
	read, write, userRead, userWrite status // of AT
	jumped                           bool
	execute, userExecute             status
	pa                               uint64 // of the read, to 4 KiB
}

// status is a fault status code (D19.2.40, ESR_EL1.ISS for a Data Abort: DFSC), or
// that there was none.
type status int

const fine status = -1

// fetched is what became of an instruction fetch.
func fetched(esr uint64) status {
	const externalAbort = 0x10 // where no memory is, which permissions do not matter to
	if s := status(esr & 0x3f); s != externalAbort {
		return s
	}
	return fine
}

// String names the kind of fault.
func (s status) String() string {
	switch {
	case s == fine:
		return "fine"
	case s == 0x2b || s >= 4 && s < 8:
		return "translation fault"
	case s == 0x29 || s >= 0 && s < 4:
		return "address size fault"
	case s >= 8 && s < 12:
		return "access flag fault"
	case s >= 12 && s < 16:
		return "permission fault"
	case s >= 0x13 && s < 0x18:
		return "abort on walk"
	}
	return fmt.Sprintf("status %#x", int(s))
}

// level is that of the fault as vmscope counts them: 4 less the manual's.
func (s status) level() uint8 {
	if s == 0x2b || s == 0x29 || s == 0x13 {
		return 5
	}
	return uint8(4 - s&3)
}

func parStatus(par uint64) status {
	if par&1 == 0 {
		return fine
	}
	return status(par >> 1 & 0x3f)
}

func readAnswer(t *testing.T, g vm.Machine, at uint64, q question) answer {
	t.Helper()
	par := func(i uint64) uint64 { return word(t, g, at+questionPAR+8*i) }
	a := answer{parStatus(par(0)), parStatus(par(1)), parStatus(par(2)), parStatus(par(3)), q.jump, fine, fine, par(0) & (1<<52 - 1<<12)}
	if !q.jump {
		return a
	}
	const unknown, fromBelow, same = 0, 0x20, 0x21 // exception classes: an HVC at EL0, an Instruction Abort of EL0, of EL1
	esr, elr := word(t, g, at+questionEL1), word(t, g, at+questionEL1+8)
	switch class := esr >> 26; {
	case esr == 0 && elr == q.va+4:
	case class == same:
		a.execute = fetched(esr)
	default:
		t.Fatalf("%#x at EL1: ESR_EL1 %#x, ELR_EL2 %#x", q.va, esr, elr)
	}
	esr = word(t, g, at+questionEL0)
	switch class := esr >> 26; {
	case class == unknown && esr != 0:
	case class == fromBelow:
		a.userExecute = fetched(esr)
	default:
		t.Fatalf("%#x at EL0: ESR_EL1 %#x", q.va, esr)
	}
	return a
}

// differs compares the answer with a translation: what kind of answer it is, and what differs, if
// anything does.
func (a *answer) differs(r *regime, m mem.Mapping, err error) (kind, says string) {
	var fault *mem.FaultError
	errors.As(err, &fault)
	kind = a.read.String()
	switch kind {
	case "fine":
	case "translation fault":
		if err == nil || !errors.Is(err, mem.ErrNotMapped) || fault.Level != 0 && uint8(fault.Level) != a.read.level() {
			return kind, "another fault"
		}
		return kind, a.alike()
	case "abort on walk":
		if err == nil || !errors.Is(err, mem.ErrNoRAM) || uint8(fault.Level) != a.read.level() {
			return kind, "another fault"
		}
		return kind, a.alike()
	case "address size fault":
		// Where memory ends is not for the tables to say: the page is where no RAM is.
		switch {
		case err == nil && m.Level == a.read.level() && m.PA>>r.addresses() != 0:
		case errors.Is(err, mem.ErrNoRAM) && uint8(fault.Level) == a.read.level()-1:
		default:
			return kind, "another fault"
		}
		return kind, a.alike()
	case "access flag fault":
		// Pages that the kernel calls old are there.
		if err != nil || m.Level != a.read.level() || m.Entry&af != 0 {
			return kind, "another fault"
		}
		return kind, a.alike()
	default:
		return kind, "a fault that is none of the tables"
	}
	kind = "mapped"
	if err != nil || uint64(m.PA)&^0xfff != a.pa {
		return kind, "another page"
	}
	for _, s := range []status{a.write, a.userRead, a.userWrite, a.execute, a.userExecute} {
		if s != fine && (s.String() != "permission fault" || s.level() != m.Level) {
			return kind, "another level"
		}
	}
	if written := a.write == fine || a.userWrite == fine; written != (m.Perm&mem.Write != 0) {
		return kind, "whether it can be written"
	}
	user := m.Perm&mem.User != 0
	if !a.jumped {
		if a.userRead == fine && !user {
			return kind, "whether it is the user's"
		}
		return kind, ""
	}
	if a.execute == fine || a.userExecute == fine {
		kind = "executed"
	}
	if (kind == "executed") != (m.Perm&mem.Exec != 0) {
		return kind, "whether it can be executed"
	}
	if user != (a.userRead == fine || a.userExecute == fine) {
		return kind, "whether it is the user's"
	}
	return kind, ""
}

// alike says whether all accesses fault alike.
func (a *answer) alike() string {
	all := []status{a.write, a.userRead, a.userWrite}
	if a.jumped {
		all = append(all, a.execute, a.userExecute)
	}
	for _, s := range all {
		if s != a.read {
			return "not all accesses fault alike"
		}
	}
	return ""
}
