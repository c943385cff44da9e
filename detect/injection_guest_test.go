package detect

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
)

// injections are what processes do to their code, or have done to it. Each is
// told; only code that is not the file's any more is above inventory.
var injections = []struct {
	name     string
	spawn    guestlab.Spawn
	severity Severity
	words    []string
}{
	{"anonymous code", guestlab.Spawn{Comm: []byte("jit"), Hold: &guestlab.Hold{Kinds: []string{"anonymous code"}}}, Info,
		[]string{"(jit) executes memory without a file", "rwxp, 4096 bytes", fmt.Sprintf("%x", "a marker in held")}},
	{"memfd", guestlab.Spawn{Comm: []byte("fileless"), Hold: &guestlab.Hold{Kinds: []string{"memfd code"}}}, Info,
		[]string{"(fileless) executes memory that was made as a file (/memfd:held (deleted))", "9090"}},
	{"changed code", guestlab.Spawn{Comm: []byte("patched"), Hold: &guestlab.Hold{Kinds: []string{"patched code"}}}, Medium,
		[]string{"code of /", "/patched in process", "is not what the file has", "0f0b0f0b0f0b0f0b"}},
	{"tracing", guestlab.Spawn{Comm: []byte("debugger"), Hold: &guestlab.Hold{Kinds: []string{"traced child"}}}, Info,
		[]string{"(busybox) is traced by process", "(debugger)"}},
	{"preload", guestlab.Spawn{Comm: []byte("preloaded"), Env: [][]byte{[]byte("A=b"), []byte("LD_PRELOAD=/tmp/evil.so")}}, Info,
		[]string{"(preloaded) was started with LD_PRELOAD=/tmp/evil.so"}},
	{"audit", guestlab.Spawn{Comm: []byte("audited"), Env: [][]byte{[]byte("LD_AUDIT=/tmp/audit.so")}}, Info,
		[]string{"(audited) was started with LD_AUDIT=/tmp/audit.so"}},
}

// all is a finding as one text.
func (f Finding) all() string {
	all := string(f.Severity) + " " + f.Summary
	for _, e := range f.Evidence {
		all += fmt.Sprintf("\n%#x %s %s %s %s %s", uint64(e.Addr), e.What, e.Symbol, e.Owner, e.Expected, e.Found)
	}
	return all
}

// has reports whether there is a finding of a severity with all words in it.
func (r Result) has(s Severity, words []string) bool {
	for _, f := range r.Findings {
		all, n := f.all(), 0
		for _, w := range words {
			if strings.Contains(all, w) {
				n++
			}
		}
		if n == len(words) && f.Severity == s {
			return true
		}
	}
	return false
}

// TestInjection has processes of a running guest change their code, be traced
// and be preloaded into, and demands that each is told, and no more when it has
// ended.
func TestInjection(t *testing.T) {
	for _, name := range []string{"bullseye-cloud", "bookworm-cloud", "sid-cloud"} {
		t.Run(name, func(t *testing.T) {
			lab := guestlab.Boot(t, guestlab.Config{Kernel: name, MemoryMiB: 256})
			g, err := vmscope.Open(t.Context(), lab.Name())
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			run := func(script string) {
				t.Helper()
				if _, err := lab.Run(t.Context(), script); err != nil {
					t.Fatal(err)
				}
			}
			sweep := func(d Detector) (r Result) {
				t.Helper()
				if err := g.View(t.Context(), func(v *vmscope.View) error {
					r = Sweep(t.Context(), v, []Detector{d})
					return r.Err()
				}); err != nil {
					t.Fatal(err)
				}
				return r
			}
			look := func() Result { return sweep(Injection{}) }
			demand := func(r Result, s Severity, words []string) {
				t.Helper()
				if !r.has(s, words) {
					t.Errorf("no finding of severity %s with %q", s, words)
					for _, f := range r.Findings {
						t.Logf("not it: %s", f.all())
					}
				}
			}
			before := look()
			if len(before.Tampered()) > 0 {
				t.Errorf("a guest that nobody tampers with: %+v", before.Tampered())
			}
			for _, c := range injections {
				t.Run(c.name, func(t *testing.T) {
					pid, err := lab.Spawn(t.Context(), c.spawn)
					if err != nil {
						t.Fatal(err)
					}
					r := look()
					// A process that was just started has not got its stack yet.
					for n := 0; n < 20 && !r.has(c.severity, c.words); n++ {
						time.Sleep(50 * time.Millisecond)
						r = look()
					}
					if !r.has(c.severity, c.words) {
						t.Errorf("no finding of severity %s with %q", c.severity, c.words)
						for _, f := range r.Findings {
							t.Logf("not it: %s", f.all())
						}
					}
					run(fmt.Sprintf("kill -9 %d; while [ -d /proc/%d ]; do :; done", pid, pid))
					if look := look(); look.has(c.severity, c.words) {
						t.Errorf("it ended and is still found: %+v", look.Findings)
					}
				})
			}

			t.Run("more code than is compared", func(t *testing.T) { lacksEffort(t, g, lab) })

			run("mkdir /tmp/gone; cp /bin/busybox /tmp/gone/sleep; /tmp/gone/sleep 1000 >/dev/null 2>&1 & usleep 300000; rm /tmp/gone/sleep")
			demand(look(), Info, []string{"(sleep) executes a file that was deleted (/tmp/gone/sleep (deleted))"})
			run("killall sleep")

			run("echo /tmp/evil.so > /etc/ld.so.preload")
			demand(look(), Info, []string{"/etc/ld.so.preload has libraries loaded into every program", "/tmp/evil.so"})
			run("rm /etc/ld.so.preload")
			if r := look(); r.has(Info, []string{"/etc/ld.so.preload"}) {
				t.Errorf("ld.so.preload is gone and still found: %+v", r.Findings)
			}

			// A probe of the kernel's own changes code as well, and is explained.
			if _, err := lab.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("probed")}); err != nil {
				t.Fatal(err)
			}
			run(`mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
cd /sys/kernel/tracing
echo "p:one $(readlink /proc/$(pidof probed)/exe):0xb0" > uprobe_events
echo 1 > events/uprobes/enable`)
			r := look()
			demand(r, Info, []string{"/probed of process", "probes of the kernel in its code (uprobes)"})
			if len(r.Tampered()) > 0 {
				t.Errorf("uprobes are not explained: %+v", r.Tampered())
			}
			toggled := make(chan error, 1)
			go func() {
				_, err := lab.Run(t.Context(), "cd /sys/kernel/tracing; for i in 0 1 0 1 0 1 0 1; do echo $i > events/uprobes/enable; done")
				toggled <- err
			}()
			for done := false; !done; {
				select {
				case err := <-toggled:
					if done = true; err != nil {
						t.Fatal(err)
					}
				case <-time.After(20 * time.Millisecond): // the guest needs the processor as well
				}
				if r := look(); len(r.Tampered()) > 0 {
					t.Errorf("while uprobes come and go: %+v", r.Tampered())
				}
			}
			run("cd /sys/kernel/tracing; echo 0 > events/uprobes/enable; echo > uprobe_events")
			if r := look(); len(r.Tampered()) > 0 {
				t.Errorf("after uprobes: %+v", r.Tampered())
			}
			if name == "bookworm-cloud" {
				return // between the others in all that follows
			}
			t.Run("programs of eBPF", func(t *testing.T) { testPrograms(t, lab, func() Result { return sweep(BPF{}) }) })
		})
	}
}

// lacksEffort has a process change its code, and looks with less and less to do
// it by. As long as there is enough the change is found, also where a process's
// share of it is too small at first; what is left out is told.
func lacksEffort(t *testing.T, g *vmscope.Guest, lab *guestlab.Guest) {
	pid, err := lab.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("patched"), Hold: &guestlab.Hold{Kinds: []string{"patched code"}}})
	if err != nil {
		t.Fatal(err)
	}
	// look gives what was found, and what it took.
	look := func(all effort) (found, rest bool, took effort) {
		t.Helper()
		if err := g.View(t.Context(), func(v *vmscope.View) error {
			l := newLook(v)
			f, err := bind[injectionLayout](l)
			if err != nil {
				return err
			}
			w := newInjectionWalk(l, f)
			w.all = all
			err = w.look(t.Context())
			w.groups.report(func(f Finding) {
				rest = rest || strings.Contains(f.Summary, "more code than a look compares")
				if f.Severity != Info {
					t.Errorf("%+v", f)
				}
			})
			for _, f := range w.findings {
				found = found || f.Severity == Medium && strings.Contains(f.Summary, "/patched in process")
			}
			took = effort{all.pages - w.text.left.pages, all.tables - w.text.left.tables}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return found, rest, took
	}
	found, rest, took := look(allText)
	for n := 0; n < 100 && !found; n++ { // it was just started
		time.Sleep(50 * time.Millisecond)
		found, rest, took = look(allText)
	}
	if !found || rest {
		t.Fatalf("found: %v, with a rest: %v", found, rest)
	}
	for _, c := range []struct {
		all         effort
		found, rest bool
	}{
		// Shares of that are too small: what is begun in vain counts, too.
		{effort{3 * took.pages, allText.tables}, true, false},
		{effort{allText.pages, 3 * took.tables}, true, false},
		{effort{took.pages / 2, allText.tables}, false, true},
		{effort{allText.pages, took.tables / 2}, false, true},
		{effort{}, false, true},
	} {
		found, rest, _ := look(c.all)
		if rest != c.rest || c.found && !found {
			t.Errorf("%+v of %+v: found: %v, with a rest: %v", c.all, took, found, rest)
		}
	}
	if _, err := lab.Run(t.Context(), fmt.Sprintf("kill -9 %d; while [ -d /proc/%d ]; do :; done", pid, pid)); err != nil {
		t.Fatal(err)
	}
}
