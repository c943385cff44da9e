package qemu

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"vmscope/internal/qmp"
	"vmscope/vm/qemu/libvirt"
)

// FindDomain finds the QEMU of a domain of libvirt, which is asked over its daemon's socket. target is what stands behind
// "libvirt:" in a URI: ///NAME or just NAME, where NAME may be the domain's UUID or number too, and behind it ?socket=PATH where
// the daemon listens elsewhere. Without that the system's daemon is asked, ours, and, for root, those of all users.
//
// The process is the one that has the threads which QEMU's monitor says are the domain's processors, so that neither a
// command line nor a daemon can name another's.
func FindDomain(ctx context.Context, target string) (Process, error) {
	name, socket, err := parseDomain(target)
	if err != nil {
		return Process{}, fmt.Errorf("%w: libvirt:%s: %w", ErrNoVM, target, err)
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtWait)
	defer cancel()
	c, err := dialDomain(ctx, name, socket)
	if err != nil {
		return Process{}, err
	}
	defer c.Close()
	return c.process(ctx)
}

// parseDomain reads the target of FindDomain.
func parseDomain(target string) (name, socket string, err error) {
	name, query, asked := strings.Cut(target, "?")
	defer func() {
		if err == nil && name == "" {
			err = errors.New("it names no domain: give libvirt:///NAME")
		}
	}()
	if rest, ok := strings.CutPrefix(name, "//"); ok {
		host, path, _ := strings.Cut(rest, "/")
		if host != "" {
			return "", "", fmt.Errorf("the memory is on the host %q: run vmscope there (a domain of this host is libvirt:///NAME)", host)
		}
		if name, err = url.PathUnescape(path); err != nil {
			return "", "", err
		}
	}
	if !asked {
		return name, "", nil
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", "", err
	}
	for k := range values {
		if k != "socket" {
			return "", "", fmt.Errorf("unknown parameter %q: there is socket=PATH", k)
		}
	}
	socket = values.Get("socket")
	if !filepath.IsAbs(socket) {
		return "", "", fmt.Errorf("socket=%s: give an absolute path", socket)
	}
	return name, socket, nil
}

// domain is a domain of a daemon that we are connected to.
type domain struct {
	*libvirt.Conn
	libvirt.Domain
}

// dialDomain finds the daemon that has a domain.
func dialDomain(ctx context.Context, name, socket string) (*domain, error) {
	var found *domain
	var names []string
	var errs error
	ask := func(c *libvirt.Conn, err error) (done bool) {
		if err != nil {
			if socket != "" || !errors.Is(err, libvirt.ErrNoDaemon) {
				errs = errors.Join(errs, err)
			}
			return false
		}
		d, ok, err := c.Lookup(ctx, name)
		switch {
		case err != nil:
			errs = errors.Join(errs, fmt.Errorf("%q: %w", c.Socket, err))
		case !ok:
			names = append(names, known(ctx, c)...)
		case found == nil:
			found = &domain{c, d}
			return c.UID == 0 || c.UID == os.Geteuid()
		default:
			errs = fmt.Errorf("%w: %q; choose one by its daemon, ?socket=%s or ?socket=%s", ErrManyVMs, name, found.Socket, c.Socket)
			found.Close()
			found = nil
			c.Close()
			return true
		}
		c.Close()
		return false
	}
	if socket != "" {
		ask(libvirt.Dial(ctx, socket))
	} else {
		uid := os.Geteuid()
		if uid == 0 {
			uid = -1
		}
		for _, dir := range libvirt.Dirs(uid) {
			// A user may make all others wait.
			dctx, cancel := context.WithTimeout(ctx, libvirtWait/4)
			c, err := libvirt.DialIn(dctx, dir)
			cancel()
			if ask(c, err) {
				break
			}
		}
	}
	switch {
	case found != nil:
		return found, nil
	case errs != nil:
		return nil, fmt.Errorf("domain %q: %w", name, errs)
	case names != nil:
		return nil, fmt.Errorf("%w: libvirt has no domain %q; it has %s", ErrNoVM, name, strings.Join(names[:min(len(names), 20)], ", "))
	}
	return nil, fmt.Errorf("domain %q: %w: neither libvirtd nor virtqemud runs here (start one, or use qemu:NAME; 'vmscope vms' lists what runs)", name, libvirt.ErrNoDaemon)
}

// known lists a daemon's domains, for a message.
func known(ctx context.Context, c *libvirt.Conn) []string {
	all, err := c.Domains(ctx)
	if err != nil {
		return []string{fmt.Sprintf("none that it tells (%v)", err)}
	}
	if len(all) == 0 {
		return []string{"none"}
	}
	var out []string
	for _, d := range all {
		state := ""
		if d.ID < 0 {
			state = " (shut off)"
		}
		out = append(out, strconv.Quote(d.Name)+state)
	}
	return out
}

// process finds the domain's QEMU.
func (d *domain) process(ctx context.Context) (Process, error) {
	threads, err := d.threads(ctx)
	if err != nil {
		return Process{}, err
	}
	all, err := List()
	if err != nil {
		return Process{}, err
	}
	var hits []Process
	for _, p := range all {
		if p.Name == d.Name && d.runs(p, threads) == nil {
			hits = append(hits, p)
		}
	}
	switch len(hits) {
	case 1:
		p := hits[0]
		p.Daemon = d.Socket
		return p, nil
	case 0:
		return Process{}, fmt.Errorf("%w: domain %q runs, but none of the processes that we may see: run as root, and where its QEMU is (not in a container beside)", ErrNoVM, d.Name)
	}
	return Process{}, fmt.Errorf("%w: domain %q: %v and %v", ErrManyVMs, d.Name, hits[0], hits[1])
}

// runs tells why a process is not the domain's; nil if it is.
func (d *domain) runs(p Process, threads []int) error {
	if uid, err := strconv.Atoi(status(p.PID, "Uid")); d.UID != 0 && (err != nil || uid != d.UID) {
		return fmt.Errorf("%q: the daemon of user %d has no say about %v, which is another's", d.Socket, d.UID, p)
	}
	for _, tid := range threads {
		if !hasThread(p.PID, tid) {
			return fmt.Errorf("%q: domain %q is another machine than %v, of that name too", d.Socket, d.Name, p)
		}
	}
	return nil
}

// monitor passes commands through libvirt.
func (d *domain) monitor() *qmp.Relay {
	return &qmp.Relay{
		Pass: func(ctx context.Context, line string, file *os.File) (string, error) {
			return d.Command(ctx, d.Domain, line, file)
		},
		Leave: d.Close,
	}
}

// threads asks which threads are the domain's processors.
func (d *domain) threads(ctx context.Context) ([]int, error) {
	if d.ID < 0 {
		return nil, fmt.Errorf("%w: domain %q is shut off: start it first ('virsh start')", ErrNoVM, d.Name)
	}
	var cpus []struct {
		Thread int `json:"thread-id"`
	}
	if err := qmp.Query(ctx, d.monitor(), "query-cpus-fast", nil, &cpus); err != nil {
		return nil, fmt.Errorf("domain %q: %w", d.Name, err)
	}
	var out []int
	for _, c := range cpus {
		out = append(out, c.Thread)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("domain %q: its monitor tells of no processor", d.Name)
	}
	return out, nil
}

// relay is the monitor of a process by a daemon, or by whichever has it ("").
func (p Process) relay(ctx context.Context, socket string) (qmp.Monitor, error) {
	if socket != "" {
		c, err := libvirt.Dial(ctx, socket)
		if err != nil {
			return nil, err
		}
		return p.through(ctx, c)
	}
	uid, err := strconv.Atoi(status(p.PID, "Uid"))
	if err != nil {
		return nil, fmt.Errorf("%w: %v has just ended", ErrNoVM, p)
	}
	var errs error
	for _, dir := range libvirt.Dirs(uid) {
		c, err := libvirt.DialIn(ctx, dir)
		if err == nil {
			var m qmp.Monitor
			if m, err = p.through(ctx, c); err == nil {
				return m, nil
			}
		}
		errs = errors.Join(errs, err)
	}
	if errs == nil {
		errs = libvirt.ErrNoDaemon
	}
	return nil, errs
}

// through is the monitor of a process by a daemon that we are connected to.
func (p Process) through(ctx context.Context, c *libvirt.Conn) (qmp.Monitor, error) {
	found, ok, err := c.Lookup(ctx, p.Name)
	if err == nil && (!ok || found.Name != p.Name) {
		err = fmt.Errorf("%q has no domain %q", c.Socket, p.Name)
	}
	d := &domain{c, found}
	var threads []int
	if err == nil {
		threads, err = d.threads(ctx)
	}
	if err == nil {
		err = d.runs(p, threads)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return d.monitor(), nil
}

// hasThread reports whether a process has a thread of that number, here or in its own PID namespace.
func hasThread(pid, tid int) bool {
	dir := fmt.Sprintf("/proc/%d/task/", pid)
	if _, err := os.Stat(dir + strconv.Itoa(tid)); err == nil {
		return true
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range all {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		ids := strings.Fields(status(id, "NSpid"))
		if len(ids) > 1 && ids[len(ids)-1] == strconv.Itoa(tid) {
			return true
		}
	}
	return false
}

// status gives a line of /proc/N/status; of Uid the real one. "" if it is not there.
func status(n int, key string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && k == key {
			f := strings.Fields(v)
			if key == "Uid" && len(f) > 0 {
				return f[0]
			}
			return strings.Join(f, " ")
		}
	}
	return ""
}
