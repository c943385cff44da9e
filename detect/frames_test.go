package detect

import (
	"context"
	"errors"
	"strings"
	"testing"

	"vmscope"
	"vmscope/kernel/linux"
	"vmscope/vm"
)

// doubted is a machine of which each look finds what the last one left of it.
type doubted struct {
	vm.Machine
	looks [][]vm.Disputed
	err   error
}

func (d *doubted) Disputed(most int) ([]vm.Disputed, int, error) {
	list := d.looks[0]
	if len(d.looks) > 1 {
		d.looks = d.looks[1:]
	}
	return list[:min(most, len(list))], len(list), d.err
}

func TestFrames(t *testing.T) {
	one := []vm.Disputed{{Page: 0x5000, Frame: 0x77, Is: 0x9000, Owned: true}, {Page: 0x6000, Frame: 1 << 40}}
	many := make([]vm.Disputed, 1000)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		machine vm.Machine
		words   []string // of the finding; none: there is none
		err     error
	}{
		"agree":   {machine: &doubted{looks: [][]vm.Disputed{nil}}},
		"other":   {machine: nil},
		"stays":   {machine: &doubted{looks: [][]vm.Disputed{one}}, words: []string{"2 pages", "0x5000", "0x77", "0x9000", "0x10000000000"}},
		"instant": {machine: &doubted{looks: [][]vm.Disputed{one, nil}}},
		"many":    {machine: &doubted{looks: [][]vm.Disputed{many}}, words: []string{"1000 pages", "992 more"}},
		"error":   {machine: &doubted{looks: [][]vm.Disputed{nil}, err: broken}, err: broken},
	} {
		t.Run(name, func(t *testing.T) {
			v := &vmscope.View{View: &linux.View{Kernel: new(linux.Kernel)}, Machine: c.machine}
			var found []Finding
			err := Frames{}.Inspect(context.Background(), newLook(v), func(f Finding) { found = append(found, f) })
			if !errors.Is(err, c.err) {
				t.Fatal(err)
			}
			if len(c.words) == 0 {
				if len(found) != 0 {
					t.Errorf("%+v", found)
				}
				return
			}
			if len(found) != 1 || len(found[0].Evidence) > maxDisputed+1 {
				t.Fatalf("%+v", found)
			}
			text := found[0].Summary
			for _, e := range found[0].Evidence {
				text += "\n" + e.What + " " + e.Expected + " " + e.Found
			}
			for _, w := range c.words {
				if !strings.Contains(text, w) {
					t.Errorf("%q is missing in\n%s", w, text)
				}
			}
		})
	}
}
