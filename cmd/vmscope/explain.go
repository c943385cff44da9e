package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"

	"vmscope"
	"vmscope/detect"
	"vmscope/docs/checks"
	"vmscope/kernel"
	"vmscope/vm/dump"
)

// explained is what check --explain prints as JSON.
type explained struct {
	detect.Explanation
	Page  string           `json:"page"`
	About []checks.Section `json:"about"`
	Next  []string         `json:"next"`
}

// explain shows the finding whose ID is, or begins with, id.
func (a *app) explain(ctx context.Context, v *vmscope.View, target, id string, keep keeper) error {
	ref, err := keep.load(v)
	if err != nil {
		return err
	}
	// Only the checks that the ID can be of.
	detectors := slices.DeleteFunc(detect.Against(ref), func(d detect.Detector) bool {
		return !strings.HasPrefix(id, d.Name()+"-") && !strings.HasPrefix(d.Name()+"-", id)
	})
	r := detect.Sweep(ctx, v, detectors)
	err = errors.Join(r.Err(), keep.save(ref))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f, ferr := byID(r.Findings, id)
	if ferr != nil {
		return errors.Join(ferr, err)
	}
	x := explained{Explanation: detect.Explain(v, f)[0], Page: checks.Path(f.Check), About: checks.Page(f.Check)}
	if f.Contradiction() {
		x.Page, x.About = checks.Path("contradictions"), checks.Page("contradictions")
	}
	x.Next = next(v, target, x)
	if a.json {
		if err := a.object(x); err != nil {
			return err
		}
	} else if err := a.printExplanation(x); err != nil {
		return err
	}
	if err == nil && f.Severity != detect.Info {
		err = errFindings
	}
	return err
}

// byID is the finding that an ID, or the start of one, names.
func byID(list []detect.Finding, id string) (detect.Finding, error) {
	var found []detect.Finding
	for _, f := range list {
		if f.ID == id {
			return f, nil
		}
		if strings.HasPrefix(f.ID, id) {
			found = append(found, f)
		}
	}
	switch len(found) {
	case 0:
		return detect.Finding{}, fmt.Errorf("no finding %q is there (any more); check without --explain lists those that are, by the same --state and --kernel", id)
	case 1:
		return found[0], nil
	}
	return detect.Finding{}, fmt.Errorf("%d findings begin with %q, such as %s and %s", len(found), id, found[0].ID, found[1].ID)
}

// next are commands with which to look on.
func next(v *vmscope.View, target string, x explained) []string {
	if !harmless(target) {
		target = "TARGET"
	}
	var out []string
	for _, p := range x.Places {
		switch {
		case p.PA != 0 && p.PID != 0:
			out = append(out, fmt.Sprintf("vmscope read %s --pid %d --va %#x --len 64", target, p.PID, uint64(p.Addr)))
		case p.PA != 0:
			out = append(out, fmt.Sprintf("vmscope read %s --va %#x --len 64", target, uint64(p.Addr)))
		}
	}
	out = slices.Compact(out)
	for _, p := range x.Places {
		if p.Symbol != "" {
			out = append(out, fmt.Sprintf("vmscope sym %s %#x", target, uint64(p.Addr)))
			break
		}
	}
	for _, e := range x.Evidence {
		if strings.HasPrefix(e.Owner, "module ") {
			out = append(out, fmt.Sprintf("vmscope lsmod %s", target))
			break
		}
	}
	if _, ok := v.Machine.(dump.Bundle); !ok {
		out = append(out, fmt.Sprintf("vmscope check %s --bundle FILE", target))
	}
	return out
}

func (a *app) printExplanation(x explained) error {
	if err := a.finding(detect.Change{Finding: detect.Finding{
		ID: x.ID, Severity: x.Severity, Confidence: x.Confidence, Summary: x.Summary,
	}}, false); err != nil {
		return err
	}
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "    %-12s%s\n", name, fmt.Sprintf(format, args...))
	}
	for i, e := range x.Evidence {
		fmt.Fprintf(&b, "\n[%d] %s\n", i+1, kernel.Text(e.What))
		at := slices.IndexFunc(x.Places, func(p detect.Place) bool { return p.Number == i+1 })
		var p detect.Place
		if at >= 0 {
			p = x.Places[at]
			where := fmt.Sprintf("%#x", uint64(p.Addr))
			if p.Symbol != "" {
				where += "  " + kernel.Text(p.Symbol).String()
			}
			if p.Owner != "" {
				where += ", of " + kernel.Text(p.Owner).String()
			}
			line("address", "%s", where)
		}
		if e.Expected != "" {
			line("expected", "%s", kernel.Text(e.Expected))
		}
		if e.Found != "" {
			line("found", "%s", kernel.Text(e.Found))
		}
		if len(p.Found) > 0 {
			a.sideBySide(&b, p)
		}
		for j, s := range p.Pages {
			name := ""
			if j == 0 {
				name = "page tables"
			}
			line(name, "level %d  at %#-12x entry %-18s %s", s.Level, uint64(s.At), s.Entry, s.Perms)
		}
		if p.Perms != "" {
			line("physical", "%#x, %s", uint64(p.PA), p.Perms)
		}
		if p.Problem != "" {
			line("not shown", "%s", kernel.Text(p.Problem))
		}
		if p.LeadsTo != 0 {
			line("leads to", "[%d]", p.LeadsTo)
		}
	}
	for i, s := range x.About {
		fmt.Fprintf(&b, "\n%s\n", strings.ToUpper(s.Title[:1])+s.Title[1:])
		if i == 0 {
			fmt.Fprintf(&b, "    (%s)\n", x.Page)
		}
		for l := range strings.Lines(plain(s.Text)) {
			if l != "\n" {
				b.WriteString("    ")
			}
			b.WriteString(l)
		}
		b.WriteByte('\n')
	}
	b.WriteString("\nTo look on\n")
	for _, c := range x.Next {
		b.WriteString("    " + c + "\n")
	}
	_, err := a.out.Write([]byte(b.String()))
	return err
}

// marks of Markdown that are of no use on a terminal.
var marks = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)|[*]([^*\n]+(?:\n[^*\n]+)?)[*]`)

func plain(markdown string) string {
	return strings.ReplaceAll(marks.ReplaceAllString(markdown, "$1$2"), "`", "")
}

// sideBySide prints the bytes of a place: what was expected, where that is
// known, beside what was found, of which the bytes that matter are marked.
func (a *app) sideBySide(b *strings.Builder, p detect.Place) {
	width := 16
	if len(p.Expected) > 0 {
		width = 8
		fmt.Fprintf(b, "    %-12s%-18s%-*s%s\n", "bytes", "", 3*width+2, "expected", "found")
	}
	for i := 0; i < len(p.Found); i += width {
		end := min(i+width, len(p.Found))
		name := ""
		if i == 0 && len(p.Expected) == 0 {
			name = "bytes"
		}
		fmt.Fprintf(b, "    %-12s%016x  ", name, uint64(p.Start)+uint64(i))
		under := 4 + 12 + 18
		if len(p.Expected) > 0 {
			fmt.Fprintf(b, "%-*s", 3*width+2, fmt.Sprintf("% x", []byte(p.Expected[i:min(end, len(p.Expected))])))
			under += 3*width + 2
		}
		var row, below bytes.Buffer
		for j := i; j < end; j++ {
			mark := j < p.Marked
			if j < len(p.Expected) {
				mark = p.Found[j] != p.Expected[j]
			}
			one, sign := fmt.Sprintf("%02x", p.Found[j]), "  "
			if mark {
				sign = "^^"
				if a.colors() {
					one = text.FgRed.Sprint(one)
				}
			}
			row.WriteString(one + " ")
			below.WriteString(sign + " ")
		}
		b.WriteString(strings.TrimRight(row.String(), " ") + "\n")
		if s := strings.TrimRight(below.String(), " "); s != "" {
			b.WriteString(strings.Repeat(" ", under) + s + "\n")
		}
	}
}
