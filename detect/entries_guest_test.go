package detect

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/vm/dump"
)

// testEntries has SYSCALL and SYSENTER lead elsewhere. QEMU's monitor does not
// tell where to; the state that QEMU saves does.
func testEntries(t *testing.T, l *lair) {
	path := filepath.Join(t.TempDir(), "saved")
	bundle := filepath.Join(t.TempDir(), "bundle")
	look := func(sweep func(v *vmscope.View) (Result, error)) (r Result) {
		t.Helper()
		save(t, l.lab, path)
		g, err := vmscope.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if err := g.View(t.Context(), func(v *vmscope.View) error {
			cpus, err := v.Registers(t.Context())
			if err != nil || len(cpus) != l.lab.Config().CPUs || cpus[0].LSTAR == 0 {
				return fmt.Errorf("registers: %+v, %w", cpus, err)
			}
			r, err = sweep(v)
			if slices.ContainsFunc(r.Checks, func(c Check) bool { return len(c.Lacks) > 0 }) {
				t.Errorf("the saved state tells all: %+v", r.Checks)
			}
			return errors.Join(err, r.Err())
		}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	sweep := func(v *vmscope.View) (Result, error) { return Sweep(t.Context(), v, All()), nil }
	silent(t, look(sweep))
	l.put(t, "entries", "bad_entries")
	l.run(t, "insmod /tmp/bad_entries.ko")
	r := look(func(v *vmscope.View) (Result, error) {
		return WriteBundle(t.Context(), v, NewReference(), bundle, dump.About{}, nil)
	})
	same(t, bundle, r, All())
	for register, function := range map[string]string{"MSR_LSTAR": "entry_SYSCALL_64", "MSR_CSTAR": "entry_SYSCALL_compat", "MSR_IA32_SYSENTER_EIP": "entry_SYSENTER_compat"} {
		demand(t, r, "syscalls", []string{register + " of vCPU 0", function, "passage [bad_entries]", "module bad_entries"})
	}
	l.run(t, "rmmod bad_entries")
	silent(t, look(sweep))
}

// save has QEMU save the state of a guest as it does to migrate it. The guest
// stands still meanwhile.
func save(t *testing.T, lab *guestlab.Guest, path string) {
	t.Helper()
	m, err := qmp.Dial(t.Context(), lab.QMPSocket(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	run := func(command string, args any) json.RawMessage {
		t.Helper()
		out, err := m.Run(t.Context(), command, args)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	run("stop", nil)
	run("migrate", map[string]any{"uri": "exec:cat > '" + path + "'"})
	for {
		var is struct{ Status string }
		if err := json.Unmarshal(run("query-migrate", nil), &is); err != nil {
			t.Fatal(err)
		}
		if is.Status == "completed" {
			break
		}
		if is.Status == "failed" {
			t.Fatal("QEMU could not save its state")
		}
		time.Sleep(20 * time.Millisecond)
	}
	run("cont", nil)
}
