package xen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/xenbus"
	"vmscope/mem"
	"vmscope/vm"
)

// Kind is how a domain runs.
type Kind string

// The kinds of domains.
const (
	PV  Kind = "pv"
	PVH Kind = "pvh"
	HVM Kind = "hvm"
)

// Domain is a domain as Xen and xenstore describe it.
type Domain struct {
	ID     uint16
	Name   string // of xenstore; "" if it has none there
	UUID   [16]byte
	Kind   Kind
	RAM    uint64 // bytes that it has now
	VCPUs  int
	Paused bool

	maxPages  uint64
	maxVCPU   uint32
	shared    uint64 // frame of its shared_info
	dying     bool
	reachable bool // by Xen's word
}

// Flags of a domain, and of what is emulated for it.
const (
	flagDying  = 1 << 0
	flagHVM    = 1 << 1
	flagPaused = 1 << 3

	emulatesLAPIC = 1 << 0
)

// parseInfo reads struct xen_domctl_getdomaininfo.
func parseInfo(b []byte, version uint32) (Domain, error) {
	config := 104
	if version < domctlGPABits {
		config = 96
	}
	if len(b) < config+4 {
		return Domain{}, fmt.Errorf("domain information of %d bytes", len(b))
	}
	flags := le.Uint32(b[4:])
	d := Domain{
		ID: le.Uint16(b), RAM: le.Uint64(b[8:]) * mem.PageSize, VCPUs: int(le.Uint32(b[64:])), UUID: [16]byte(b[76:92]),
		Kind: PV, Paused: flags&flagPaused != 0,
		maxPages: le.Uint64(b[16:]), maxVCPU: le.Uint32(b[68:]), shared: le.Uint64(b[48:]), dying: flags&flagDying != 0,
	}
	if flags&flagHVM != 0 {
		d.Kind = HVM
		if le.Uint32(b[config:])&^emulatesLAPIC == 0 {
			d.Kind = PVH
		}
	}
	return d, nil
}

// info asks about the domain of that number. Up to Xen 4.19, if there is none, it may be the next one that is told of.
func (x *host) info(id uint16) (Domain, error) {
	r, err := x.control(domctlInfo, id, nil, nil)
	if errors.Is(err, unix.ESRCH) {
		return Domain{}, fmt.Errorf("%w: domain %d", vm.ErrNoVM, id)
	}
	if err != nil {
		return Domain{}, err
	}
	return parseInfo(r.union, x.domctl)
}

// next asks about the domain of that number, or the next one there is.
func (x *host) next(id uint16) (Domain, error) {
	// struct xen_sysctl_getdomaininfolist: first_domain, max_domains, buffer, num_domains. One at a time, as the size of
	// each differs between versions.
	union := le.AppendUint32(nil, uint32(id))
	union = le.AppendUint32(union, 1)
	union = le.AppendUint64(union, x.address(extraAt))
	r, err := x.system(sysctlDomains, union, make([]byte, unionSize))
	if err != nil {
		return Domain{}, err
	}
	if le.Uint32(r.union[16:]) == 0 {
		return Domain{}, fmt.Errorf("%w: domain %d", vm.ErrNoVM, id)
	}
	return parseInfo(r.extra, x.domctl)
}

// firstReserved is the first number that is no domain's (DOMID_FIRST_RESERVED).
const firstReserved = 0x7ff0

// domains lists those beside dom0, without names.
func (x *host) domains() ([]Domain, error) {
	var out []Domain
	for id := uint16(1); id < firstReserved; {
		d, err := x.next(id)
		if errors.Is(err, vm.ErrNoVM) {
			break
		}
		if err != nil {
			return out, err
		}
		if d.ID < id {
			return out, fmt.Errorf("domain %d asked for, %d told of: %w", id, d.ID, mem.ErrInconsistent)
		}
		if !d.dying {
			out = append(out, d)
		}
		id = d.ID + 1
	}
	return out, nil
}

// storePatience bounds the questions to xenstore: a host whose store hangs still has domains with numbers.
const storePatience = 5 * time.Second

// name fills in the names that xenstore has. Without xenstore there are none.
func name(ctx context.Context, list []Domain) {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	store, err := xenbus.Open()
	if err != nil {
		return
	}
	defer store.Close()
	for i := range list {
		// The toolstack chose it; a domain cannot write it.
		list[i].Name, _ = store.Read(ctx, fmt.Sprintf("/local/domain/%d/name", list[i].ID))
	}
}

// List lists the domains of this host beside dom0, by number. On a machine that is no dom0 the error is ErrNoXen.
func List(ctx context.Context) ([]Domain, error) {
	d, err := openDevice()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	x, err := openHost(d)
	if err != nil {
		return nil, err
	}
	list, err := x.domains()
	name(ctx, list)
	slices.SortFunc(list, func(a, b Domain) int { return cmp.Compare(a.ID, b.ID) })
	return list, err
}

// find finds the domain that target names: a number, or, if none has it, a name.
func (x *host) find(target string, list []Domain) (Domain, error) {
	if target == "" { // which is the name of those that xenstore has none of
		return Domain{}, fmt.Errorf("%w: give a domain's name or number; 'vmscope vms' lists them", vm.ErrNoVM)
	}
	if n, err := strconv.ParseUint(target, 10, 16); err == nil {
		if n == 0 {
			return Domain{}, ErrPrivileged
		}
		for _, d := range list {
			if uint64(d.ID) == n {
				return d, nil
			}
		}
	}
	if target == "Domain-0" {
		return Domain{}, ErrPrivileged
	}
	var found []Domain
	for _, d := range list {
		if d.Name == target {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return Domain{}, fmt.Errorf("%w: domain %q; 'vmscope vms' lists them", vm.ErrNoVM, target)
	case 1:
		return found[0], nil
	}
	return Domain{}, fmt.Errorf("%w: %q is that of %d and %d: use xen:%d", vm.ErrManyVMs, target, found[0].ID, found[1].ID, found[0].ID)
}
