package detect

import (
	"context"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Creds finds processes that came to their rights by none of the kernel's own
// ways. Each process has a struct cred of its own, made by copying its
// parent's; only the threads of a process share one. System calls that change
// the user keep the account of that user's resources (cred.user) in step; code
// that writes user ids, as rootkits do, does not.
//
// It goes by task_struct.real_cred: what a task acts with for the time of a
// call (task_struct.cred) may be another's, as overlayfs and io_uring have it.
type Creds struct{}

// Name implements Detector.
func (Creds) Name() string { return "creds" }

type credLayout struct {
	Real   ctype.Field `c:"task_struct.real_cred"` // include/linux/sched.h
	Parent ctype.Field `c:"task_struct.real_parent"`
	MM     ctype.Field `c:"task_struct.mm"`
	PID    ctype.Field `c:"task_struct.pid"`
	Exe    ctype.Field `c:"mm_struct.exe_file"`
	Inode  ctype.Field `c:"file.f_inode"`
	Mode   ctype.Field `c:"inode.i_mode"`

	UID         ctype.Field `c:"cred.uid"` // include/linux/cred.h
	EUID        ctype.Field `c:"cred.euid"`
	SUID        ctype.Field `c:"cred.suid"`
	Permitted   ctype.Field `c:"cred.cap_permitted"`
	Effective   ctype.Field `c:"cred.cap_effective"`
	Inheritable ctype.Field `c:"cred.cap_inheritable"`
	Ambient     ctype.Field `c:"cred.cap_ambient"`
	Keyring     ctype.Field `c:"cred.jit_keyring,optional"`
	User        ctype.Field `c:"cred.user"`
	UserUID     ctype.Field `c:"user_struct.uid"` // include/linux/sched/user.h
}

const (
	setUserID        = 0o4000 // S_ISUID
	capSetUID        = 1 << 7 // CAP_SETUID
	keyringOfThreads = 1      // KEY_REQKEY_DEFL_THREAD_KEYRING
)

// cred is what is read of a struct cred.
type cred struct {
	at                                         mem.VA
	uid, euid, suid                            uint32
	permitted, effective, inheritable, ambient uint64
	keyring                                    uint64
	user                                       mem.VA
	account                                    uint32 // the uid of user
}

// Inspect implements Detector.
func (d Creds) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	f, err := bind[credLayout](l)
	if err != nil {
		return err
	}
	return persists(ctx, l, report, func(report func(Finding)) error {
		w := &credWalk{Look: l, f: f, report: report, owners: make(map[mem.VA]linux.Task)}
		return again(ctx, l, func() error { return w.look(ctx) })
	})
}

// credWalk is one look at all processes.
type credWalk struct {
	*Look
	f      *credLayout
	owners map[mem.VA]linux.Task // of each cred, the first
	first  mem.VA                // init_cred
	all    uint64                // all capabilities that the kernel knows; 0: not known which
	report func(Finding)
}

func (w *credWalk) look(ctx context.Context) error {
	var err error
	if w.first, err = w.Symbol("init_cred"); err != nil {
		return err
	}
	first, err := w.credAt(w.first)
	if err != nil {
		return err
	}
	if w.all = first.permitted; w.all&(w.all+1) != 0 { // CAP_FULL_SET; not if somebody changed it
		w.all = 0
	}
	clear(w.owners)
	leaders, err := w.Tasks()
	if err != nil {
		return err
	}
	for _, leader := range leaders {
		if err := ctx.Err(); err != nil {
			return err
		}
		if leader.KThread() { // these may share
			at, err := w.Mem.Pointer(w.f.Real.At(leader.Addr))
			if err != nil {
				return err
			}
			w.owners[at] = leader
		}
	}
	for _, leader := range leaders {
		if leader.KThread() {
			continue
		}
		threads, err := w.ThreadsOf(leader)
		if err != nil {
			if _, ok, merr := w.lives(leader.Addr); merr == nil && ok {
				return err
			}
			continue // it exits
		}
		for _, t := range threads {
			if err := w.task(t); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// lives reports whether a task runs a program: it does not exit, and is no
// helper of the kernel that has not got its program yet. Who exits gives up its
// memory first: what task_struct.exit_state says could hide a process.
func (w *credWalk) lives(t mem.VA) (mm mem.VA, ok bool, err error) {
	mm, err = w.Mem.Pointer(w.f.MM.At(t))
	return mm, mm != 0, err
}

func (w *credWalk) task(t linux.Task) error {
	mm, ok, err := w.lives(t.Addr)
	if err != nil || !ok {
		return err
	}
	c, err := w.cred(w.f.Real.At(t.Addr))
	if err != nil {
		return err
	}
	switch other, shared := w.owners[c.at]; {
	case c.at == w.first:
		w.find(t, c, High, Proved, "init_cred", "has the credentials of the kernel itself (init_cred)",
			Evidence{What: "real_cred", Addr: w.f.Real.At(t.Addr), Expected: "credentials of its own", Found: fmt.Sprintf("%#x, init_cred", uint64(c.at))})
	case !shared:
		w.owners[c.at] = t
	case other.TGID != t.TGID:
		w.find(t, c, High, Proved, "shared", fmt.Sprintf("shares the credentials of process %d (%s)", other.TGID, other.Comm()),
			Evidence{What: "real_cred", Addr: w.f.Real.At(t.Addr), Expected: "credentials of its own", Found: fmt.Sprintf("%#x, which task_struct %#x has", uint64(c.at), uint64(other.Addr))})
	}
	if c.account != c.uid {
		w.find(t, c, High, Proved, "uid", fmt.Sprintf("has user id %d, written past the kernel, which counts it as of user %d", c.uid, c.account),
			Evidence{What: "cred.uid", Addr: w.f.UID.At(c.at), Expected: fmt.Sprintf("%d, the uid of cred.user at %#x", c.account, uint64(c.user)), Found: fmt.Sprint(c.uid)})
	}
	if all := c.permitted | c.effective | c.inheritable | c.ambient; w.all != 0 && all&^w.all != 0 {
		w.find(t, c, High, Likely, "unknown", "has capabilities that do not exist",
			Evidence{What: "the sets of capabilities", Addr: w.f.Inheritable.At(c.at), Expected: fmt.Sprintf("within %#x, which init_cred has", w.all), Found: fmt.Sprintf("%#x", all)})
	}
	if c.effective&^c.permitted != 0 {
		w.find(t, c, High, Likely, "effective", "has effective capabilities that it is not permitted",
			Evidence{What: "cred.cap_effective", Addr: w.f.Effective.At(c.at), Expected: fmt.Sprintf("within the permitted %#x", c.permitted), Found: fmt.Sprintf("%#x", c.effective)})
	}
	if c.ambient&^(c.permitted&c.inheritable) != 0 {
		w.find(t, c, High, Likely, "ambient", "has ambient capabilities that it is not permitted or cannot inherit",
			Evidence{What: "cred.cap_ambient", Addr: w.f.Ambient.At(c.at), Expected: fmt.Sprintf("within the permitted %#x and the inheritable %#x", c.permitted, c.inheritable), Found: fmt.Sprintf("%#x", c.ambient)})
	}
	if c.euid != 0 || t.PID != t.TGID {
		return nil
	}
	return w.below(t, mm, c)
}

// below looks at a process of root whose parent is not root and could not
// become root by itself. Programs that are set to run as root start others
// (sudo, su), and orphans are given to another process, which need not be root:
// so this alone is inventory. But credentials that were made for the kernel
// (prepare_kernel_cred marks them with a default key ring of their own) are had
// only by what kernel threads start; below another user they are the mark of an
// exploit.
func (w *credWalk) below(t linux.Task, mm mem.VA, c cred) error {
	at, err := w.Mem.Pointer(w.f.Parent.At(t.Addr))
	if err != nil || at == 0 {
		return err
	}
	if _, ok, err := w.lives(at); err != nil || !ok {
		return err
	}
	p, err := w.cred(w.f.Real.At(at))
	if err != nil || p.uid == 0 || p.euid == 0 || p.suid == 0 || p.permitted&capSetUID != 0 {
		return err
	}
	pid, err := w.Mem.Uint32(w.f.PID.At(at))
	if err != nil {
		return err
	}
	of := Evidence{What: fmt.Sprintf("task_struct of its parent, process %d", pid), Addr: at, Found: fmt.Sprintf("user %d", p.uid)}
	if w.f.Keyring.Valid() && c.keyring == keyringOfThreads {
		w.find(t, c, High, Likely, "kernel", fmt.Sprintf("is root with credentials that were made for the kernel, below process %d of user %d", pid, p.uid), of,
			Evidence{What: "cred.jit_keyring", Addr: w.f.Keyring.At(c.at), Expected: "0", Found: "1, as prepare_kernel_cred sets it"})
		return nil
	}
	exe, err := w.Mem.Pointer(w.f.Exe.At(mm))
	if err != nil || exe == 0 {
		return err
	}
	inode, err := w.Mem.Pointer(w.f.Inode.At(exe))
	if err != nil || inode == 0 {
		return err
	}
	mode, err := w.Mem.Uint(w.f.Mode.At(inode), int(w.f.Mode.Size()))
	if err == nil && mode&setUserID == 0 {
		w.find(t, c, Info, Possible, "below", fmt.Sprintf("is root below process %d of user %d, and its program is not set to run as root", pid, p.uid), of)
	}
	return err
}

// cred reads what a pointer leads to.
func (w *credWalk) cred(from mem.VA) (cred, error) {
	at, err := w.Mem.Pointer(from)
	if err != nil {
		return cred{}, err
	}
	return w.credAt(at)
}

// credAt reads a struct cred.
func (w *credWalk) credAt(at mem.VA) (cred, error) {
	c := cred{at: at}
	var errs error
	uint := func(f ctype.Field) uint64 {
		if errs != nil || !f.Valid() {
			return 0
		}
		n, err := w.Mem.Uint(f.At(c.at), int(f.Size()))
		errs = err
		return n
	}
	c.uid, c.euid, c.suid = uint32(uint(w.f.UID)), uint32(uint(w.f.EUID)), uint32(uint(w.f.SUID))
	c.permitted, c.effective, c.inheritable, c.ambient = uint(w.f.Permitted), uint(w.f.Effective), uint(w.f.Inheritable), uint(w.f.Ambient)
	c.keyring = uint(w.f.Keyring)
	c.user = mem.VA(uint(w.f.User))
	if errs != nil {
		return c, errs
	}
	account, err := w.Mem.Uint32(w.f.UserUID.At(c.user))
	c.account = account
	return c, err
}

// find reports something about a task.
func (w *credWalk) find(t linux.Task, c cred, s Severity, sure Confidence, kind, what string, more ...Evidence) {
	f := Finding{Check: "creds", Severity: s, Confidence: sure,
		Summary: fmt.Sprintf("process %d (%s) %s", t.PID, t.Comm(), what),
		Evidence: append(more,
			Evidence{What: fmt.Sprintf("task_struct of pid %d (%s)", t.PID, t.Comm()), Addr: t.Addr},
			Evidence{What: fmt.Sprintf("its cred: uid %d, euid %d, suid %d", c.uid, c.euid, c.suid), Addr: c.at, Symbol: w.Name(c.at)})}
	f.identify(kind, fmt.Sprint(t.PID))
	w.report(f)
}
