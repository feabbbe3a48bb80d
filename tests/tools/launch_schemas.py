"""What the services say of the YAML that `launch` writes, as far as it is used: keys, kinds of values and closed sets.

From the CRDs of JobSet (v1alpha2) and Kueue (v1beta2), the API of Kubernetes Jobs, the attributes of volumes of the Cloud
Storage FUSE driver of GKE, and the schema of SkyPilot tasks.
"""

NAME = dict(name=str)

KUEUE = dict(
    ResourceFlavor=dict(
        apiVersion={'kueue.x-k8s.io/v1beta2'}, kind=str, metadata=NAME, spec=dict(nodeLabels={str: str})
    ),
    ClusterQueue=dict(
        apiVersion={'kueue.x-k8s.io/v1beta2'},
        kind=str,
        metadata=NAME,
        spec=dict(
            namespaceSelector={str: str},
            resourceGroups=[
                dict(coveredResources=[str], flavors=[dict(name=str, resources=[dict(name=str, nominalQuota=int)])])
            ],
        ),
    ),
    LocalQueue=dict(
        apiVersion={'kueue.x-k8s.io/v1beta2'},
        kind=str,
        metadata=dict(name=str, namespace=str),
        spec=dict(clusterQueue=str),
    ),
)

CONTAINER = dict(
    name=str,
    image=str,
    command=[str],
    securityContext=dict(privileged=bool),
    resources=dict(limits={str: int}),
    volumeMounts=[dict(name=str, mountPath=str)],
)

POD = dict(
    restartPolicy={'Never'},  # what podFailurePolicy asks for
    hostNetwork=bool,
    dnsPolicy={'ClusterFirstWithHostNet', 'ClusterFirst', 'Default', 'None'},
    terminationGracePeriodSeconds=int,
    serviceAccountName=str,
    nodeSelector={str: str},
    containers=[CONTAINER],
    volumes=[
        dict(
            name=str,
            emptyDir=dict(medium={'', 'Memory'}),
            csi=dict(
                driver={'gcsfuse.csi.storage.gke.io'},
                readOnly=bool,
                volumeAttributes=dict(bucketName=str, mountOptions=str, hostNetworkPodKSA={'true', 'false'}),
            ),
        )
    ],
)

JOB = dict(
    parallelism=int,
    completions=int,
    completionMode={'Indexed', 'NonIndexed'},
    backoffLimit=int,
    podFailurePolicy=dict(
        rules=[
            dict(
                action={'FailJob', 'FailIndex', 'Ignore', 'Count'},
                onExitCodes=dict(containerName=str, operator={'In', 'NotIn'}, values=[int]),
                onPodConditions=[dict(type={'DisruptionTarget'})],
            )
        ]
    ),
    template=dict(metadata=dict(annotations={str: str}), spec=POD),
)

ACTIONS = {'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'}
REASONS = {'BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'MaxFailedIndexesExceeded', 'PodFailurePolicy'}

JOBSET = dict(
    apiVersion={'jobset.x-k8s.io/v1alpha2'},
    kind={'JobSet'},
    metadata=dict(name=str, labels={str: str}, annotations={str: str}),
    spec=dict(
        failurePolicy=dict(
            maxRestarts=int,
            rules=[
                dict(name=str, action=ACTIONS, onJobFailureReasons=[REASONS], onJobFailureMessagePatterns=[str]),
            ],
        ),
        replicatedJobs=[dict(name=str, replicas=int, template=dict(spec=JOB))],
    ),
)

SKYPILOT = dict(
    name=str,
    resources=dict(
        infra=str,
        accelerators=str,
        accelerator_args=dict(runtime_version=str, tpu_name=str, tpu_vm=bool),
        use_spot=bool,
        job_recovery=dict(strategy=str, max_restarts_on_errors=int, recover_on_exit_codes=[int]),
    ),
    setup=str,
    run=str,
)


def misfits(value, schema, at: str = '') -> list[str]:
    """Where a value does not fit: a schema is a type, a set of values, [schema of items], {name: schema}, or {str: schema} for any name."""
    if isinstance(schema, set):
        return [] if value in schema else [f'{at}: {value!r}']
    if isinstance(schema, type):
        return [] if type(value) is schema else [f'{at}: {value!r}']
    if type(value) is not type(schema):
        return [f'{at}: {value!r}']
    if isinstance(schema, list):
        return [bad for i, item in enumerate(value) for bad in misfits(item, schema[0], f'{at}[{i}]')]
    unknown = [f'{at}.{key}: no such key' for key in value if key not in schema and str not in schema]
    known = {key: schema.get(key, schema.get(str)) for key in value if not unknown}
    return unknown + [bad for key, kind in known.items() for bad in misfits(value[key], kind, f'{at}.{key}')]
