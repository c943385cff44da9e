package detect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Injection tells which processes execute memory that is not the code of a file
// that can be looked at, who is traced by a debugger, and whom a library was
// preloaded into. All that is inventory: compilers that run in a process,
// debuggers and tracers do the same as who puts code into another's process.
//
// What none of them does unseen is to change the code of a program or library
// that is mapped from its file. Each page of it that is not the page cache's own
// is compared with that; differences that no probe, debugger or relocation
// explains are a finding.
type Injection struct{}

// Name implements Detector.
func (Injection) Name() string { return "injection" }

type injectionLayout struct {
	Ptrace      ctype.Field `c:"task_struct.ptrace"` // include/linux/sched.h
	Tracer      ctype.Field `c:"task_struct.parent"`
	PID         ctype.Field `c:"task_struct.pid"`
	Comm        ctype.Field `c:"task_struct.comm"`
	Personality ctype.Field `c:"task_struct.personality"`
	Size        ctype.Field `c:"inode.i_size"` // include/linux/fs.h
	Cache       ctype.Field `c:"inode.i_mapping"`
}

// Inspect implements Detector.
func (d Injection) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	f, err := bind[injectionLayout](l)
	if err != nil {
		return err
	}
	return persists(ctx, l, report, func(report func(Finding)) error {
		w := newInjectionWalk(l, f)
		err := again(ctx, l, func() error {
			w = newInjectionWalk(l, f)
			return w.look(ctx)
		})
		w.groups.report(report)
		for _, f := range w.findings {
			report(f)
		}
		return err
	})
}

// injectionWalk is one look at all processes.
type injectionWalk struct {
	*Look
	f        *injectionLayout
	groups   groups
	findings []Finding
	all      effort // for text
	text     *textWalk
	roots    map[mem.VA]bool // directories that were searched for ld.so.preload
}

func newInjectionWalk(l *Look, f *injectionLayout) *injectionWalk {
	return &injectionWalk{Look: l, f: f, all: allText, groups: newGroups(), roots: make(map[mem.VA]bool)}
}

func (w *injectionWalk) look(ctx context.Context) error {
	var err error
	if w.text, err = newTextWalk(w.Look, w.all); err != nil {
		return err
	}
	tasks, err := w.Tasks()
	if err != nil {
		return err
	}
	tasks = slices.DeleteFunc(tasks, func(t linux.Task) bool { return t.KThread() })
	var later []unfinished
	for i, t := range tasks {
		if err := ctx.Err(); err != nil {
			return err
		}
		tracer, err := w.traced(t)
		if err != nil {
			return err
		}
		areas, err := w.CodeAreas(t)
		if err != nil {
			if errors.Is(err, mem.ErrUnreachable) {
				return err
			}
			w.unread(t, err)
		}
		w.unfiled(t, areas)
		u := unfinished{Task: t, tracer: tracer}
		done, err := w.changed(ctx, &u, areas, len(tasks)-i, false)
		if err != nil {
			return err
		}
		if !done {
			later = append(later, u)
		}
		w.preloaded(t)
		w.preloadFile(t)
	}
	// What others did not need is for those who need more, as far as it goes.
	for i := range later {
		areas, err := w.CodeAreas(later[i].Task)
		if errors.Is(err, mem.ErrUnreachable) {
			return err
		}
		if _, err := w.changed(ctx, &later[i], areas, 1, true); err != nil {
			return err
		}
	}
	return nil
}

// unread tells that the map of a process could not be read as a whole.
func (w *injectionWalk) unread(t linux.Task, err error) {
	w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Possible,
		Summary: "the memory map of %s could not be read as a whole"}, t,
		Evidence{What: err.Error(), Addr: t.Addr}, "unread", string(t.Comm()))
}

// traced tells who traces a process or a thread of it by ptrace(2), and gives
// one of them, "" if nobody does.
func (w *injectionWalk) traced(t linux.Task) (by string, err error) {
	threads, err := w.ThreadsOf(t)
	if err != nil {
		return "", nil // it exits
	}
	for _, th := range threads {
		flags, err := w.Mem.Uint32(w.f.Ptrace.At(th.Addr))
		if err != nil {
			return by, err
		}
		if flags == 0 {
			continue
		}
		tracer, err := w.Mem.Pointer(w.f.Tracer.At(th.Addr))
		if err != nil {
			return by, err
		}
		pid, err := w.Mem.Uint32(w.f.PID.At(tracer))
		if err != nil {
			return by, err
		}
		comm, err := w.Mem.CString(w.f.Comm.At(tracer), int(min(w.f.Comm.Size(), 16)))
		if err != nil {
			return by, err
		}
		by = fmt.Sprintf("process %d (%s)", pid, kernel.Text(comm))
		w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Proved,
			Summary: fmt.Sprintf("%%s is traced by %s", by)}, t,
			Evidence{What: fmt.Sprintf("ptrace of thread %d", th.PID), Addr: w.f.Ptrace.At(th.Addr), Found: fmt.Sprintf("%#x, by task_struct %#x", flags, uint64(tracer))},
			"ptrace", string(t.Comm()), string(comm))
	}
	return by, nil
}

// unfiled tells of code that no file stands behind, or none that still has a
// name.
func (w *injectionWalk) unfiled(t linux.Task, areas []linux.CodeArea) {
	for _, a := range areas {
		e := Evidence{What: fmt.Sprintf("%s, %d bytes", a.Perms, uint64(a.End-a.Start)), Addr: a.Start}
		switch {
		case a.Special || a.Path == "[vsyscall]":
		case a.Inode == 0:
			if a.Path != "" {
				e.What += ", " + a.Path.String()
			}
			e.Found = w.begins(t, a.Start)
			w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Proved, Summary: "%s executes memory without a file"}, t, e, "anonymous", string(t.Comm()))
		case a.Links == 0 && strings.HasPrefix(string(a.Path), "/memfd:"):
			e.Found = w.begins(t, a.Start)
			w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Proved, Summary: fmt.Sprintf("%%s executes memory that was made as a file (%s)", a.Path)}, t, e, "memfd", string(t.Comm()), string(a.Path))
		case a.Links == 0:
			w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Proved, Summary: fmt.Sprintf("%%s executes a file that was deleted (%s)", a.Path)}, t, e, "deleted", string(a.Path))
		}
	}
}

// begins is how memory of a process begins, in hexadecimal.
func (w *injectionWalk) begins(t linux.Task, at mem.VA) string {
	s, err := w.SpaceOf(t)
	if err != nil {
		return ""
	}
	b := make([]byte, 16)
	if _, err := s.Read(b, at); err != nil {
		return "" // no page yet
	}
	if strings.HasPrefix(string(b), "\x7fELF") {
		return fmt.Sprintf("%x, the head of an ELF file", b)
	}
	return fmt.Sprintf("%x", b)
}

const (
	// maxGroups bounds the findings of inventory: how processes are called is the
	// guest's to choose.
	maxGroups = maxFindings / 2
	// maxAlike bounds the evidence of one, and the processes that it names.
	maxAlike = 16
)

// groups joins findings of inventory that are alike, so that a program that runs
// a hundred times is told once.
type groups struct {
	of    map[string]*group
	order []string
	more  int // that are not told
}

type group struct {
	Finding
	who   []string
	pids  map[int]bool
	areas int
}

func newGroups() groups { return groups{of: make(map[string]*group)} }

// add tells something about a process, for which %s stands in the Summary. About
// is what makes findings alike.
func (g *groups) add(f Finding, t linux.Task, e Evidence, about ...string) {
	key := strings.Join(about, "\x00")
	of := g.of[key]
	if of == nil {
		if len(g.order) == maxGroups {
			g.more++
			return
		}
		of = &group{Finding: f, pids: make(map[int]bool)}
		of.identify(about...)
		g.of[key] = of
		g.order = append(g.order, key)
	}
	if !of.pids[t.PID] {
		of.pids[t.PID] = true
		of.who = add(of.who, fmt.Sprintf("%d (%s)", t.PID, t.Comm()))
	}
	if of.areas++; of.areas <= maxAlike {
		e.Owner = fmt.Sprintf("process %d (%s)", t.PID, t.Comm())
		if e.Addr < kernelHalf {
			e.pid = t.PID
		}
		of.Evidence = append(of.Evidence, e)
	}
}

// report gives the findings, most processes first.
func (g *groups) report(report func(Finding)) {
	for _, key := range g.order {
		of := g.of[key]
		who := "process " + of.who[0]
		if len(of.who) > 1 {
			who = fmt.Sprintf("each of %d processes, %s,", len(of.pids), strings.Join(of.who, ", "))
		}
		f := of.Finding
		f.Summary = strings.Replace(f.Summary, "%s", who, 1)
		if n := of.areas - len(f.Evidence); n > 0 {
			f.Evidence = append(slices.Clip(f.Evidence), Evidence{What: fmt.Sprintf("and %d more", n)})
		}
		report(f)
	}
	if g.more > 0 {
		f := Finding{Check: "injection", Severity: Info, Confidence: Possible,
			Summary:  fmt.Sprintf("inventory that is not shown, above %d kinds", maxGroups),
			Evidence: []Evidence{{What: fmt.Sprintf("%d areas, threads or variables", g.more)}}}
		f.identify("more")
		report(f)
	}
}
