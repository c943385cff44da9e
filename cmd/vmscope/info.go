package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm"
)

// infoRow is what info prints as JSON.
type infoRow struct {
	Name     kernel.Text     `json:"name,omitempty"`
	PID      int             `json:"pid,omitempty"`
	VMM      kernel.Text     `json:"vmm"`
	RAM      uint64          `json:"ram"`
	Route    kernel.Text     `json:"route"`
	Layout   kernel.Text     `json:"layout"`
	OS       string          `json:"os"`
	Arch     string          `json:"arch"`
	Release  kernel.Text     `json:"release"`
	Version  kernel.Text     `json:"version"`
	Hostname kernel.Text     `json:"hostname,omitempty"`
	State    string          `json:"state,omitempty"`
	KASLR    string          `json:"kaslr"`
	Root     mem.PA          `json:"page_table_root"`
	Paging   string          `json:"paging"`
	Symbols  counted         `json:"symbols"`
	Types    counted         `json:"types"`
	Booted   *time.Time      `json:"booted,omitempty"`
	Findings []linux.Finding `json:"findings"`
	Doubts   []string        `json:"contradictions,omitempty"`
	Rejected []string        `json:"rejected,omitempty"`
	Steps    []linux.Step    `json:"steps"`
}

// counted is how many of something were found, and how surely.
type counted struct {
	Count      int    `json:"count"`
	Source     string `json:"source,omitempty"`
	Confidence string `json:"confidence"` // "none": there are none
}

func (a *app) infoCmd() *cobra.Command {
	return a.see("info", "Say what runs in a guest, how that was found, and how surely", func(v *vmscope.View) error {
		r := describe(v)
		if a.json {
			return a.object(r)
		}
		a.printInfo(r)
		return nil
	})
}

func describe(v *vmscope.View) infoRow {
	r := infoRow{
		OS: "linux", Arch: v.Arch, Release: kernel.Text(v.Release), Version: kernel.Text(v.Banner),
		KASLR: fmt.Sprintf("%#x", v.Slide), Root: v.Root, Paging: v.Mode.String(),
		Symbols:  counted{v.Symbols.Len(), "", "none"},
		Types:    counted{0, "", "none"},
		Findings: v.Report.Findings, Doubts: v.Report.Contradictions, Rejected: v.Report.Rejected, Steps: v.Report.Steps,
	}
	if d, ok := v.Machine.(vm.Describer); ok {
		i := d.Info()
		r.Name, r.PID, r.RAM = kernel.Text(i.Name), i.PID, i.RAM
		r.VMM, r.Route, r.Layout = kernel.Text(i.VMM), kernel.Text(i.Route), kernel.Text(i.Layout)
	}
	if v.Types != nil {
		r.Types.Count = v.Types.Len()
	} else if i := v.Inferred(); i != nil {
		r.Types.Count = i.Types.Len()
	}
	for _, f := range v.Report.Findings {
		switch f.What {
		case "symbols":
			r.Symbols.Source, r.Symbols.Confidence = f.Source, f.Confidence
		case "types":
			r.Types.Source, r.Types.Confidence = f.Source, f.Confidence
		}
	}
	if t, err := v.BootTime(); err == nil {
		r.Booted = &t
	}
	if h, err := v.Hostname(); err == nil {
		r.Hostname = h
	}
	if s, err := v.State(); err == nil {
		r.State = s
	}
	return r
}

func (a *app) printInfo(r infoRow) {
	line := func(name string, format string, args ...any) {
		fmt.Fprintf(a.out, "%-16s %s\n", name, fmt.Sprintf(format, args...))
	}
	who := r.Name.String()
	if r.PID != 0 {
		who += fmt.Sprintf(" (pid %d)", r.PID)
	}
	line("machine", "%s, %s, %s", who, r.VMM, size(r.RAM))
	line("memory", "%s; layout %s", r.Route, r.Layout)
	line("kernel", "%s", r.Version)
	if r.Hostname != "" {
		line("host name", "%s", r.Hostname)
	}
	if r.State != "" {
		line("state", "%s", r.State)
	}
	if r.Booted != nil {
		line("booted", "%s", r.Booted.Format(time.RFC3339))
	}
	line("KASLR", "%s", r.KASLR)
	fmt.Fprintln(a.out)
	t := a.table([]any{"found", "value", "from", "confidence"})
	for _, f := range r.Findings {
		t.AppendRow([]any{f.What, kernel.Text(f.Value), f.Source, f.Confidence})
	}
	t.Render()
	for _, x := range r.Doubts {
		line("contradiction", "%s", kernel.Text(x))
	}
	for _, x := range r.Rejected {
		line("rejected", "%s", kernel.Text(x))
	}
	fmt.Fprintln(a.out)
	t = a.table([]any{"step", "took", "note"})
	var sum time.Duration
	for _, s := range r.Steps {
		sum += s.Took
		t.AppendRow([]any{s.Name, s.Took.Round(10 * time.Microsecond), kernel.Text(s.Note)})
	}
	t.AppendRow([]any{"all", sum.Round(10 * time.Microsecond), ""})
	t.Render()
}
