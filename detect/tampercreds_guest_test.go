package detect

import (
	"fmt"
	"slices"

	"vmscope/kernel/linux"
	"vmscope/mem"
)

// sleeper is the process that the guest was given to be tampered with.
func (v *victim) sleeper() linux.Task {
	v.Helper()
	tasks, err := v.tx.Tasks()
	if err != nil {
		v.Fatal(err)
	}
	i := slices.IndexFunc(tasks, func(t linux.Task) bool { return t.Comm() == "sleeper" })
	if i < 0 {
		v.Fatal("no sleeper")
	}
	return tasks[i]
}

// cred is the struct cred of a task.
func (v *victim) cred(task mem.VA) mem.VA {
	return v.pointer(v.member(task, "task_struct", "real_cred"))
}

// become gives a task the credentials at an address.
func (v *victim) become(task, cred mem.VA) {
	v.put(v.member(task, "task_struct", "real_cred"), uint64(cred))
	v.put(v.member(task, "task_struct", "cred"), uint64(cred))
}

// demote makes the sleeper's parent a process of user 1000 without rights.
func (v *victim) demote() {
	parent := v.pointer(v.member(v.sleeper().Addr, "task_struct", "real_parent"))
	for _, id := range []string{"uid", "euid", "suid"} {
		v.write(v.member(v.cred(parent), "cred", id), []byte{232, 3, 0, 0})
	}
	v.put(v.member(v.cred(parent), "cred", "cap_effective"), 0)
	v.put(v.member(v.cred(parent), "cred", "cap_permitted"), 0)
}

// credTamperings give rights to a process in the ways that rootkits and
// exploits do.
var credTamperings = []tampering{
	{"credentials of another", "creds", func(v *victim) []string {
		tasks, err := v.tx.Tasks()
		if err != nil {
			v.Fatal(err)
		}
		v.become(v.sleeper().Addr, v.cred(tasks[0].Addr)) // of the first process
		return []string{"(sleeper)", "shares the credentials of process", fmt.Sprintf("%#x", uint64(v.cred(tasks[0].Addr)))}
	}},
	{"credentials of the kernel", "creds", func(v *victim) []string {
		v.become(v.sleeper().Addr, v.symbol("init_cred"))
		return []string{"(sleeper)", "init_cred"}
	}},
	{"user id", "creds", func(v *victim) []string {
		v.write(v.member(v.cred(v.sleeper().Addr), "cred", "uid"), []byte{1, 2, 0, 0})
		return []string{"(sleeper)", "user id 513", "of user 0"}
	}},
	{"capabilities", "creds", func(v *victim) []string {
		v.put(v.member(v.cred(v.sleeper().Addr), "cred", "cap_permitted"), 0)
		return []string{"(sleeper)", "effective capabilities", "within the permitted 0x0"}
	}},
	{"capabilities that do not exist", "creds", func(v *victim) []string {
		for _, set := range []string{"cap_permitted", "cap_effective", "cap_inheritable"} { // as exploits do
			v.put(v.member(v.cred(v.sleeper().Addr), "cred", set), ^uint64(0))
		}
		return []string{"(sleeper)", "capabilities that do not exist", "0xffffffffffffffff", "which init_cred has"}
	}},
	{"ambient capabilities", "creds", func(v *victim) []string {
		v.put(v.member(v.cred(v.sleeper().Addr), "cred", "cap_ambient"), 1<<21)
		return []string{"(sleeper)", "ambient capabilities", "0x200000"}
	}},
	{"credentials made for the kernel", "creds", func(v *victim) []string {
		v.demote()
		v.write(v.member(v.cred(v.sleeper().Addr), "cred", "jit_keyring"), []byte{1})
		return []string{"(sleeper)", "made for the kernel", "user 1000", "prepare_kernel_cred"}
	}},
	{"root below another", "creds", func(v *victim) []string {
		v.demote()
		return []string{"(sleeper)", "is root below process", "user 1000", "not set to run as root"}
	}},
}
