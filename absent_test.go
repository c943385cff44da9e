package vmscope

import (
	"context"
	"errors"
	"strings"
	"testing"

	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm"
)

// disputing is an empty machine that says on which pages its guest's table contradicts the hypervisor's.
type disputing struct {
	vm.Machine
	pages []vm.Disputed
}

func (d disputing) Ranges() []mem.Range { return nil }

func (d disputing) Disputed(most int) ([]vm.Disputed, int, error) {
	return d.pages[:min(most, len(d.pages))], len(d.pages), nil
}

// A PV guest whose kernel is not found may have hidden it by its table of frames.
func TestDisputedKernel(t *testing.T) {
	for _, c := range []struct {
		pages []vm.Disputed
		want  bool
	}{{nil, false}, {[]vm.Disputed{{Page: 0x1c00000, Frame: 7}, {Page: 0x1c01000, Frame: 8}}, true}} {
		g := &Guest{target: "xen:a", machine: disputing{pages: c.pages}}
		err := g.explain(context.Background(), vm.Layout{}, linux.ErrNoKernel)
		if !errors.Is(err, linux.ErrNoKernel) {
			t.Error(err)
		}
		if got := strings.Contains(err.Error(), "on 2 pages") && strings.Contains(err.Error(), "0x1c00000"); got != c.want {
			t.Errorf("%d pages: %v", len(c.pages), err)
		}
	}
}
